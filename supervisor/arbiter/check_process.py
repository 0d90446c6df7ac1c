"""Child processes that run once and report: the boot check and the preflight of a restart.

The report is one JSON object on a pipe. A child that exceeds its time limit is killed and counts as failed.
"""

import json
import os
import selectors
import time
from collections.abc import Callable
from typing import Any

from supervisor.arbiter.child_processes import ChildProcesses, Status
from supervisor.arbiter.loop import Loop
from supervisor.errors import AlreadyRunningError, ConfigError, HandlerError, RedisUnreachableError, SupervisorError
from supervisor.text import signal_name

REPORT_BYTES_MAX = 1024 * 1024
_ERRORS = {kind.exit_code: kind for kind in (ConfigError, RedisUnreachableError, HandlerError, AlreadyRunningError)}


def error_of(code: int, text: str) -> SupervisorError:
    """Return the error that a child's exit code stands for."""
    return _ERRORS.get(code, SupervisorError)(text)


class CheckProcess:
    """One such child."""

    def __init__(
        self,
        loop: Loop,
        children: ChildProcesses,
        start: Callable[[int], int],
        limit_s: float,
        done: Callable[[int, dict[str, Any]], None],
    ) -> None:
        """`start(out_fd)` starts the child and returns its pid; `done(exit code, report)` is called at its end."""
        self._loop = loop
        self._children = children
        self._done = done
        self._limit_s = limit_s
        self._received = b""
        self._late = False
        self._in, out = os.pipe()
        os.set_blocking(self._in, False)
        try:
            self.pid = start(out)
        except BaseException:
            os.close(self._in)
            raise
        finally:
            os.close(out)
        loop.watch(self._in, selectors.EVENT_READ, self._receive)
        self._timer = loop.call_at(time.monotonic() + limit_s, self._timed_out)
        children.add(self.pid, self._exited)

    def kill(self) -> None:
        """Kill the child; `done` is still called."""
        self._children.kill(self.pid)

    def _receive(self, _events: int) -> None:
        try:
            chunk = os.read(self._in, 65536)
        except BlockingIOError:
            return
        self._received += chunk
        if not chunk or len(self._received) > REPORT_BYTES_MAX:
            self._loop.unwatch(self._in)

    def _timed_out(self) -> None:
        self._late = True
        self.kill()

    def _exited(self, status: Status) -> None:
        self._timer.cancel()
        self._receive(selectors.EVENT_READ)
        self._loop.unwatch(self._in)
        os.close(self._in)
        code, number = status
        self._done(code if code is not None else 128 + (number or 0), self._report(code, number))

    def _report(self, code: int | None, number: int | None) -> dict[str, Any]:
        try:
            report = json.loads(self._received)
        except ValueError:
            report = {}
        if not isinstance(report, dict):
            report = {}
        if self._late:
            report["error"] = f"no answer within {self._limit_s:g} s"
        elif code != 0 and "error" not in report:
            report["error"] = f"exit code {code}" if number is None else f"ended by {signal_name(number)}"
        return report
