"""The terminal that the pool was started from, if there was one.

SIGHUP asks for code and configuration afresh; but it also comes when a terminal is closed, and then
nobody is there who would want the pool to go on. Whether the terminal still is one tells them apart.
"""

from __future__ import annotations

import os

#: stdin and stderr.
_FDS = (0, 2)


class Terminal:
    """Remembers where a terminal was at the start."""

    def __init__(self) -> None:
        self._fds = [fd for fd in _FDS if os.isatty(fd)]

    def is_gone(self) -> bool:
        """There was a terminal, and it was hung up since. The kernel hangs it up before it sends SIGHUP."""
        return any(not os.isatty(fd) for fd in self._fds)
