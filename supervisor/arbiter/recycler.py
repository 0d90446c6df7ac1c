"""Replaces workers that have grown, aged or handled many messages; `core.recycle` decides which one."""

import time
from typing import Any

import psutil

from supervisor.arbiter.rolling_restart import RollingRestart
from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.core.recycle import RecycleLimits, WorkerUsage, most_overdue
from supervisor.core.slot import Slot, State
from supervisor.settings.model import PoolSettings
from supervisor.shared_state import SlotField

MEGABYTE = 1_000_000


class Recycler:
    """Replaces one worker at a time, only while all others are READY."""

    def __init__(self, workers: WorkerGroup, restarts: RollingRestart, settings: PoolSettings, log: Any) -> None:
        self._workers = workers
        self._restarts = restarts
        self._drain_s = settings.drain_s
        self._log = log
        self._limits = RecycleLimits(
            settings.recycle_growth_mb * MEGABYTE, settings.recycle_messages, settings.recycle_age_s
        )
        #: pid -> (private bytes, completed messages) when it was first seen READY.
        self._began: dict[int, tuple[int, int]] = {}

    def check(self) -> None:
        """Drain the worker that exceeds a limit the most, if there is one."""
        wanted = [slot for slot in self._workers.slots.values() if slot.wanted]
        self._began = {slot.pid: self._began[slot.pid] for slot in wanted if slot.pid in self._began}
        if not self._limits.any or self._restarts.rolling or not wanted:
            return
        usages = [self._usage(slot) for slot in wanted if slot.state is State.READY]
        overdue = most_overdue(usages, self._limits)
        if overdue is None or len(usages) < len(wanted):
            return
        number, reason = overdue
        usage = next(usage for usage in usages if usage.slot == number)
        self._log.info(
            "recycling worker",
            slot=number,
            reason=reason,
            age_s=round(usage.age_s, 1),
            messages=usage.messages,
            growth_mb=round(usage.growth_bytes / MEGABYTE, 1) if self._limits.growth_bytes else None,
        )
        self._workers.drain(number, time.monotonic() + self._drain_s)

    def _usage(self, slot: Slot) -> WorkerUsage:
        done = self._workers.shared.slot(slot.number).get(SlotField.DONE)
        private_bytes = _private_bytes(slot.pid) if self._limits.growth_bytes else 0
        began_bytes, began_done = self._began.setdefault(slot.pid, (private_bytes, done))
        age_s = time.monotonic() - (slot.ready_s or slot.spawned_s)
        return WorkerUsage(slot.number, age_s, done - began_done, private_bytes - began_bytes)


def _private_bytes(pid: int) -> int:
    """Return the private memory of a process; 0 if it has just exited."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0
