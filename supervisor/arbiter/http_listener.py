"""The HTTP service's listening socket, which is the arbiter's: it stays open while the service is replaced.

Beside it goes a memory file that the service writes into as soon as it serves, so that the arbiter
knows. Both are handed to the service alone; every other child closes them.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any

from supervisor.http_bind import HTTP_FDS_VARIABLE, PortInUseError, listen
from supervisor.memfd import create_memfd

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The service of an arbiter that was killed a moment ago may still be leaving.
LEFTOVER_S = 1.0
LOOK_S = 0.02


class HttpListener:
    """The socket and the file; neither is there before `open`."""

    def __init__(self, bind: str, inherited: Mapping[str, Any] | None = None) -> None:
        """`bind` is empty where no service is wanted. `inherited` is a predecessor's `state`."""
        self.bind = bind
        self._socket: socket.socket | None = None
        self._ready_fd = -1
        if inherited:
            self._ready_fd = inherited["ready_fd"]
            self._socket = socket.socket(fileno=inherited["fd"])
            if inherited["bind"] != bind:
                self.close()

    def open(self, patience_s: float = 0.0) -> None:
        """Listen, if it does not yet; a taken port is tried for so long. Raises ConfigError, OSError."""
        until_s = time.monotonic() + patience_s
        while self._socket is None:
            try:
                self._socket = listen(self.bind)
            except PortInUseError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(LOOK_S)
        if self._ready_fd < 0:
            self._ready_fd = create_memfd("http")

    def close(self) -> None:
        """No connection comes any more, but for those to a service that still has the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def sockets(self) -> list[int]:
        """The socket's descriptor, if it is open."""
        return [] if self._socket is None else [self._socket.fileno()]

    def fds(self) -> list[int]:
        """What a child other than the service must not keep."""
        return [*self.sockets(), *([self._ready_fd] if self._ready_fd >= 0 else [])]

    def renew(self) -> None:
        """A new service is about to start, and does not serve yet."""
        os.ftruncate(self._ready_fd, 0)

    def is_served(self) -> bool:
        """The service has announced that it serves."""
        return self._ready_fd >= 0 and os.fstat(self._ready_fd).st_size > 0

    def hand_on(self) -> dict[str, str]:
        """In the service's own process, before its exec: what to add to its environment."""
        fds = self.fds()
        for fd in fds:
            os.set_inheritable(fd, True)
        return {HTTP_FDS_VARIABLE: ",".join(map(str, fds))}

    def state(self) -> dict[str, Any] | None:
        """For a successor in the same process."""
        if self._socket is None:
            return None
        return {"bind": self.bind, "fd": self._socket.fileno(), "ready_fd": self._ready_fd}
