"""The HTTP service's listening sockets, which the arbiter owns: they stay open while the service is replaced.

All processes of the service accept from them. They also get a memory file, into which each writes a byte as soon as it
serves. The descriptors are passed to the service only; every other child closes them.
"""

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from supervisor.http_bind import HTTP_FDS_VARIABLE, READY, PortInUseError, close, listen
from supervisor.memfd import create_memfd

#: The service of an arbiter that has just been killed may still hold the port.
LEFTOVER_S = 1.0
RETRY_S = 0.02


class HttpListener:
    """The sockets and the memory file; `open` creates both."""

    def __init__(self, bind: str, inherited: Mapping[str, Any] | None = None) -> None:
        """`bind` is empty if the pool has no service. `inherited` is the `state` of an earlier image."""
        self.bind = bind
        self._sockets: list[socket.socket] = []
        self._ready_fd = -1
        if inherited:
            self._ready_fd = inherited["ready_fd"]
            self._sockets = [socket.socket(fileno=fd) for fd in inherited["fds"]]
            if inherited["bind"] != bind:
                self._close(inherited["bind"])

    def open(self, patience_s: float = 0.0) -> None:
        """Listen, if not done yet; retry for `patience_s` if the port is in use. Raises ConfigError, OSError."""
        until_s = time.monotonic() + patience_s
        while not self._sockets:
            try:
                self._sockets = listen(self.bind)
            except PortInUseError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(RETRY_S)
        if self._ready_fd < 0:
            self._ready_fd = create_memfd("http")

    def close(self) -> None:
        """Close the arbiter's copies of the sockets; a running service keeps its own."""
        self._close(self.bind)

    def _close(self, bind: str) -> None:
        if self._sockets:
            close(self._sockets, bind)
            self._sockets = []

    def sockets(self) -> list[int]:
        """Return the descriptors of the sockets that are open."""
        return [one.fileno() for one in self._sockets]

    def fds(self) -> list[int]:
        """Return the descriptors that children other than the service must close."""
        return [*self.sockets(), *([self._ready_fd] if self._ready_fd >= 0 else [])]

    def reset_ready(self, process: int) -> None:
        """Forget that the last child was serving, before a new one starts."""
        os.pwrite(self._ready_fd, b"\0", process)

    def is_served(self, process: int) -> bool:
        """Return whether this process of the service has reported that it serves."""
        return self._ready_fd >= 0 and os.pread(self._ready_fd, 1, process) == READY

    def export(self, process: int) -> dict[str, str]:
        """Make the descriptors inheritable and return the variable that names them; in the service's own process."""
        fds = self.fds()
        for fd in fds:
            os.set_inheritable(fd, True)
        return {HTTP_FDS_VARIABLE: ",".join(map(str, (*fds, process)))}

    def state(self) -> dict[str, Any] | None:
        """Return what the next image of this process needs."""
        if not self._sockets:
            return None
        return {"bind": self.bind, "fds": self.sockets(), "ready_fd": self._ready_fd}
