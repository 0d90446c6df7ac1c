"""Knows which processes are the arbiter's children, and tells when one has left.

A pidfd per child where the system has them, else SIGCHLD; the truth is always `waitpid` for a known
pid. Orphans that come to the arbiter, as a subreaper or as pid 1, are reaped without a word to anyone.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.arbiter.loop import Loop

LOOK_S = 0.005
#: (exit code, None) or (None, signal number)
Status = tuple[int | None, int | None]


class Children:
    """All children, by pid."""

    def __init__(self, loop: Loop) -> None:
        """Listens to SIGCHLD from now on."""
        self._loop = loop
        self._pidfds: dict[int, int] = {}
        self._callbacks: dict[int, Callable[[Status], None]] = {}
        loop.on_signal(signal.SIGCHLD, self._look)

    def fds(self) -> list[int]:
        """The pidfds; a forked child closes them."""
        return list(self._pidfds.values())

    def add(self, pid: int, gone: Callable[[Status], None]) -> None:
        """Call `gone` once when this child has left, after its process group was killed."""
        self._callbacks[pid] = gone
        if not hasattr(os, "pidfd_open"):
            return
        with contextlib.suppress(OSError):  # no descriptor left, or an old kernel: SIGCHLD has to do
            fd = os.pidfd_open(pid)
            self._pidfds[pid] = fd
            self._loop.watch(fd, selectors.EVENT_READ, lambda _events: self._reap(pid))

    def send(self, pid: int, number: signal.Signals) -> None:
        """Signal a child that was not reaped yet: its pid can't be another's."""
        if pid in self._callbacks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, pid: int) -> None:
        """SIGKILL for the child and all of its process group."""
        self.send(pid, signal.SIGKILL)
        if pid in self._callbacks:
            _kill_group(pid)

    def reap_rest(self, limit_s: float) -> None:
        """At the very end: wait a moment for the killed grandchildren that came here, so that none is left a zombie."""
        until_s = time.monotonic() + limit_s
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < until_s:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    time.sleep(LOOK_S)

    def _look(self) -> None:
        """SIGCHLD is only a hint: several may have become one, and it may be about an orphan."""
        for pid in list(self._callbacks):
            if pid not in self._pidfds:
                self._reap(pid)
        while hasattr(os, "waitid"):
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if found.si_pid in self._callbacks:
                self._reap(found.si_pid)
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(found.si_pid, os.WNOHANG)

    def _reap(self, pid: int) -> None:
        if pid not in self._callbacks or not _has_left(pid):
            return
        _kill_group(pid)  # before its pid, which is the group's name, is given back
        try:
            _, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # somebody else has waited for it
            status = 0
        fd = self._pidfds.pop(pid, None)
        if fd is not None:
            self._loop.unwatch(fd)
            os.close(fd)
        gone = self._callbacks.pop(pid)
        gone((None, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (os.WEXITSTATUS(status), None))


def _has_left(pid: int) -> bool:
    if not hasattr(os, "waitid"):
        return _has_left_by_group(pid)
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _has_left_by_group(pid: int) -> bool:
    """Without waitid (macOS before Python 3.13) a zombie is told by its lack of a process group."""
    try:
        os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return True
    return False


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
