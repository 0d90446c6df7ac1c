"""Tracks the arbiter's child processes and reports when one has exited.

It uses one pidfd per child where available, else SIGCHLD; the exit itself always comes from `waitpid` for
a known pid. Orphans that the arbiter gets as a subreaper or as pid 1 are reaped silently.
"""

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable

from supervisor.arbiter.loop import Loop

REAP_INTERVAL_S = 0.005
#: (exit code, None) or (None, signal number)
Status = tuple[int | None, int | None]


class ChildProcesses:
    """All children, by pid."""

    def __init__(self, loop: Loop) -> None:
        """Handles SIGCHLD from now on."""
        self._loop = loop
        self._pidfds: dict[int, int] = {}
        self._callbacks: dict[int, Callable[[Status], None]] = {}
        loop.on_signal(signal.SIGCHLD, self._reap_all)

    def fds(self) -> list[int]:
        """Return the pidfds; a forked child closes them."""
        return list(self._pidfds.values())

    def add(self, pid: int, on_exit: Callable[[Status], None]) -> None:
        """Call `on_exit` once when this child has exited and its process group was killed."""
        self._callbacks[pid] = on_exit
        if not hasattr(os, "pidfd_open"):
            return
        with contextlib.suppress(OSError):  # no free descriptor or an old kernel: SIGCHLD is enough
            fd = os.pidfd_open(pid)
            self._pidfds[pid] = fd
            self._loop.watch(fd, selectors.EVENT_READ, lambda _events: self._reap(pid))

    def send(self, pid: int, number: signal.Signals) -> None:
        """Signal a child that has not been reaped yet, so its pid can't belong to another process."""
        if pid in self._callbacks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, pid: int) -> None:
        """Send SIGKILL to the child and its process group."""
        self.send(pid, signal.SIGKILL)
        if pid in self._callbacks:
            _kill_group(pid)

    def reap_rest(self, limit_s: float) -> None:
        """Wait at the very end for killed grandchildren, so that no zombie is left."""
        until_s = time.monotonic() + limit_s
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < until_s:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    time.sleep(REAP_INTERVAL_S)

    def _reap_all(self) -> None:
        """Reap whatever has exited; one SIGCHLD may stand for several children and for orphans."""
        for pid in list(self._callbacks):
            if pid not in self._pidfds:
                self._reap(pid)
        while hasattr(os, "waitid"):
            try:
                exited = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if exited is None:
                return
            if exited.si_pid in self._callbacks:
                self._reap(exited.si_pid)
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(exited.si_pid, os.WNOHANG)

    def _reap(self, pid: int) -> None:
        if pid not in self._callbacks or not _has_exited(pid):
            return
        _kill_group(pid)  # before the pid, which is also the group's number, can be reused
        try:
            _, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:  # something else has waited for it
            status = 0
        fd = self._pidfds.pop(pid, None)
        if fd is not None:
            self._loop.unwatch(fd)
            os.close(fd)
        on_exit = self._callbacks.pop(pid)
        on_exit((None, os.WTERMSIG(status)) if os.WIFSIGNALED(status) else (os.WEXITSTATUS(status), None))


def _has_exited(pid: int) -> bool:
    if not hasattr(os, "waitid"):
        return _has_no_group(pid)
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _has_no_group(pid: int) -> bool:
    """Return whether the process is a zombie, which has no process group (macOS before Python 3.13 has no waitid)."""
    try:
        os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return True
    return False


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
