"""Notifies systemd of the pool's state: sd_notify(3) without a library.

NOTIFY_SOCKET and WATCHDOG_USEC are removed from the environment, so that no child speaks for the pool.
Each message is one datagram from a new socket, so no socket is open while the arbiter forks.
"""

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class SystemdNotifier:
    """Sends notifications; does nothing if NOTIFY_SOCKET is not set."""

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        """Removes systemd's variables from `environ` (default: the process's environment)."""
        taken = {name: (os.environ if environ is None else environ).pop(name, "") for name in _VARIABLES}
        self._taken = taken
        path = taken["NOTIFY_SOCKET"]
        #: "@" stands for the NUL of an abstract socket.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        mine = taken["WATCHDOG_PID"] in ("", str(os.getpid()))
        micros = taken["WATCHDOG_USEC"] if path and mine else ""
        #: How often to call `alive`: half of systemd's limit; None if there is no watchdog.
        self.watchdog_s = int(micros) / 2e6 if micros.isdecimal() and int(micros) else None
        self._last_status = ""

    def environment(self) -> dict[str, str]:
        """Return the removed variables, for the next image of this process."""
        return {name: value for name, value in self._taken.items() if value}

    def ready(self) -> None:
        """Report that the pool has started."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report that configuration and code are being reloaded; `ready` ends it (Type=notify-reload)."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the pool is draining."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Report that the arbiter's loop runs."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Send one line for people, if it differs from the last one that was sent."""
        if text != self._last_status and self._send(f"STATUS={text}"):
            self._last_status = text

    def _send(self, message: str) -> bool:
        """Return whether the message was sent; errors are ignored."""
        if not self._address:
            return False
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.sendto(message.encode(), self._address)
            return True
        return False
