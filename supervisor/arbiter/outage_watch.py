"""Logs an outage of Redis once for the whole pool, when workers begin to wait for it and when none does any more."""

import time
from typing import Any

from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.shared_state import SlotField, WorkerState


class OutageWatch:
    """Looks at what the workers report to be doing; the reasons are on the workers' own lines."""

    def __init__(self, workers: WorkerGroup, log: Any) -> None:
        self._workers = workers
        self._log = log
        self._began_s: float | None = None

    def check(self) -> None:
        """Log the beginning or the end of an outage."""
        living = [slot.number for slot in self._workers.living]
        states = [self._workers.shared.slot(number).get(SlotField.STATE) for number in living]
        waiting = states.count(WorkerState.WAIT_REDIS)
        if waiting and self._began_s is None:
            self._began_s = time.monotonic()
            hint = "messages stay in Redis; workers reconnect by themselves"
            self._log.error("Redis unavailable", workers=waiting, of=len(living), hint=hint)
        elif not waiting and living and self._began_s is not None:
            self._log.info("Redis available", outage_s=round(time.monotonic() - self._began_s, 1))
            self._began_s = None
