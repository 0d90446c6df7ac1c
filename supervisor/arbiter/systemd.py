"""Tells systemd how the pool is, where systemd asks for it: sd_notify(3) without a library.

NOTIFY_SOCKET and WATCHDOG_USEC are taken out of the environment, so that no child speaks for the pool.
A message is one datagram from a socket of its own, closed at once: nothing is open while the arbiter forks.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class SystemdNotifier:
    """The line to systemd; says nothing where nobody listens."""

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        """Takes what is addressed to this process out of `environ` (default: the process's)."""
        taken = {name: (os.environ if environ is None else environ).pop(name, "") for name in _VARIABLES}
        self._taken = taken
        path = taken["NOTIFY_SOCKET"]
        #: "@" stands for the NUL of an abstract socket.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        mine = taken["WATCHDOG_PID"] in ("", str(os.getpid()))
        micros = taken["WATCHDOG_USEC"] if path and mine else ""
        #: How often to say that the pool is alive: half of what systemd waits for; None: it does not ask.
        self.watchdog_s = int(micros) / 2e6 if micros.isdecimal() and int(micros) else None
        self._told = ""

    def environment(self) -> dict[str, str]:
        """What was taken, for a successor in the same process."""
        return {name: value for name, value in self._taken.items() if value}

    def ready(self) -> None:
        """The pool has started."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Configuration and code are read afresh; `ready` follows. For Type=systemd-reload."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The pool drains."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """The arbiter's loop turns."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for people, when it is another than the last that got through."""
        if text != self._told and self._send(f"STATUS={text}"):
            self._told = text

    def _send(self, message: str) -> bool:
        """Whether it got through. When systemd is gone, or slow, that is its loss."""
        if not self._address:
            return False
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as line,
        ):
            line.sendto(message.encode(), self._address)
            return True
        return False
