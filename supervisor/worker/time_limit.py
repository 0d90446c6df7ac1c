"""Cancels runners whose message has run for longer than the handler may take."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from supervisor.worker.runner import Runner

_INTERVAL_S_MAX = 0.5
#: Grace period for a handler that was cancelled at its time limit. After that, only the end of its process ends it.
CANCEL_GRACE_S = 5.0


class TimeLimit:
    """The time limit of one handler."""

    __slots__ = ("_interval_s", "_loop", "_runners", "_timeout_s", "timer")

    def __init__(self, runners: Collection[Runner], timeout_s: float) -> None:
        """Watch `runners`, those that are active, while the timer is armed."""
        self._runners = runners
        self._timeout_s = timeout_s
        self._interval_s = min(_INTERVAL_S_MAX, timeout_s / 10)
        self._loop = asyncio.get_running_loop()
        self.timer: asyncio.TimerHandle | None = None

    def arm(self) -> None:
        """Look at the runners soon, and again as long as any is active."""
        self.timer = self._loop.call_later(self._interval_s, self._check)

    def cancel(self) -> None:
        """Look no more."""
        if self.timer is not None:
            self.timer.cancel()

    def _check(self) -> None:
        self.timer = None
        overdue_s = monotonic() - self._timeout_s
        for runner in self._runners:
            if 0 < runner.started_s < overdue_s and not runner.timed_out:
                runner.timed_out = True
                runner.task.cancel()
        if self._runners:
            self.arm()
