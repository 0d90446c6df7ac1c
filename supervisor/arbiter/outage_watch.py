"""Logs an outage of Redis once for the whole pool, when workers begin to wait for it and when none does any more."""

import time
from typing import Any

from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.shared_state import SlotField, WorkerState

#: A connection that was lost and made again at once is not an outage.
_OUTAGE_AFTER_S = 0.5


class OutageWatch:
    """Looks at what the workers report to be doing; the reasons are on the workers' own lines."""

    def __init__(self, workers: WorkerGroup, log: Any) -> None:
        self._workers = workers
        self._log = log
        self._waiting_since_s: float | None = None
        self._is_logged = False

    def check(self) -> None:
        """Log the beginning or the end of an outage."""
        living = [slot.number for slot in self._workers.living]
        states = [self._workers.shared.slot(number).get(SlotField.STATE) for number in living]
        waiting, now_s = states.count(WorkerState.WAIT_REDIS), time.monotonic()
        if waiting:
            self._waiting_since_s = since_s = self._waiting_since_s or now_s
            if not self._is_logged and now_s - since_s >= _OUTAGE_AFTER_S:
                self._is_logged = True
                hint = "messages stay in Redis; workers reconnect by themselves"
                self._log.error("Redis unavailable", workers=waiting, of=len(living), hint=hint)
        elif living and self._waiting_since_s is not None:
            if self._is_logged:
                self._log.info("Redis available", outage_s=round(now_s - self._waiting_since_s, 1))
            self._waiting_since_s, self._is_logged = None, False
