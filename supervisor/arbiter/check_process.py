"""Children that run once and report: the boot check (is Redis there?) and the preflight of a restart.

The report is one JSON object on a pipe. A child that takes too long is killed and counts as failed.
"""

from __future__ import annotations

import json
import os
import selectors
import time
from typing import TYPE_CHECKING, Any

from supervisor.errors import (
    EXIT_HANDLERS,
    EXIT_REDIS,
    EXIT_RUNNING,
    EXIT_USAGE,
    AlreadyRunningError,
    ConfigError,
    HandlerError,
    RedisUnreachableError,
    SupervisorError,
)
from supervisor.text import signal_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.arbiter.children import Children, Status
    from supervisor.arbiter.loop import Loop

REPORT_BYTES_MAX = 1024 * 1024


#: What the exit code of the check stands for.
ERRORS: dict[int, type[SupervisorError]] = {
    EXIT_USAGE: ConfigError,
    EXIT_REDIS: RedisUnreachableError,
    EXIT_HANDLERS: HandlerError,
    EXIT_RUNNING: AlreadyRunningError,
}


class CheckProcess:
    """One such child."""

    def __init__(
        self,
        loop: Loop,
        children: Children,
        start: Callable[[int], int],
        limit_s: float,
        done: Callable[[int, dict[str, Any]], None],
    ) -> None:
        """`start(out_fd)` makes the child, `done(exit code, report)` hears of its end."""
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
        self._timer = loop.at(time.monotonic() + limit_s, self._overdue)
        children.add(self.pid, self._gone)

    def kill(self) -> None:
        """End it; `done` still hears of it."""
        self._children.kill(self.pid)

    def _receive(self, _events: int) -> None:
        try:
            chunk = os.read(self._in, 65536)
        except BlockingIOError:
            return
        self._received += chunk
        if not chunk or len(self._received) > REPORT_BYTES_MAX:
            self._loop.unwatch(self._in)

    def _overdue(self) -> None:
        self._late = True
        self.kill()

    def _gone(self, status: Status) -> None:
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
