"""What the arbiter does to a pool that runs well: replaces worn workers, and fits their number to the backlog.

It only looks and asks; `core.recycle` and `core.autoscale` decide.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil

from supervisor.core.autoscale import Bounds, Trend, clear_time_s, decide
from supervisor.core.liveness import NS
from supervisor.core.recycle import RecycleLimits, WorkerUsage, most_overdue
from supervisor.core.slot import Slot, State
from supervisor.shared_state import HeaderField, SlotField

if TYPE_CHECKING:
    from supervisor.arbiter.arbiter import Arbiter

MEGABYTE = 1_000_000
#: A backlog that was measured longer ago says nothing.
BACKLOG_FRESH_S = 10.0
#: How much the newest second counts in the rate.
_SMOOTHING = 0.3


class Recycler:
    """Replaces workers one at a time, and only while all others are READY."""

    def __init__(self, arbiter: Arbiter) -> None:
        """Acts on `arbiter`."""
        pool = arbiter.settings.pool
        self._arbiter = arbiter
        self._ceilings = RecycleLimits(pool.recycle_growth_mb * MEGABYTE, pool.recycle_messages, pool.recycle_age_s)
        #: pid -> (private bytes, messages done) when it was first seen READY.
        self._began: dict[int, tuple[int, int]] = {}

    def look(self) -> None:
        """Have the most worn worker leave, if one is due."""
        pool = self._arbiter.pool
        wanted = [slot for slot in pool.slots.values() if slot.wanted]
        self._began = {slot.pid: self._began[slot.pid] for slot in wanted if slot.pid in self._began}
        if not self._ceilings.any or self._arbiter.commands.rolling or not wanted:
            return
        worn = [self._wear(slot) for slot in wanted if slot.state is State.READY]
        found = most_overdue(worn, self._ceilings)
        if found is None or len(worn) < len(wanted):
            return
        number, reason = found
        wear = next(wear for wear in worn if wear.slot == number)
        self._arbiter.log.info(
            "recycling worker", slot=number, reason=reason, age_s=round(wear.age_s, 1), messages=wear.messages,
            growth_mb=round(wear.growth_bytes / MEGABYTE, 1) if self._ceilings.growth_bytes else None,
        )  # fmt: skip
        pool.drain(number, time.monotonic() + self._arbiter.settings.pool.drain_s)

    def _wear(self, slot: Slot) -> WorkerUsage:
        done = self._arbiter.shared.slot(slot.number).get(SlotField.DONE)
        private_bytes = _private_bytes(slot.pid) if self._ceilings.growth_bytes else 0
        began_bytes, began_done = self._began.setdefault(slot.pid, (private_bytes, done))
        age_s = time.monotonic() - (slot.ready_s or slot.spawned_s)
        return WorkerUsage(slot.number, age_s, done - began_done, private_bytes - began_bytes)


class Autoscaler:
    """Follows the keeper's figure of the backlog; does nothing unless a range of workers is configured."""

    def __init__(self, arbiter: Arbiter) -> None:
        """Acts on `arbiter`."""
        pool = arbiter.settings.pool
        self._arbiter = arbiter
        self._bounds = Bounds(pool.workers_min, pool.workers_max, pool.backlog_limit_s) if pool.workers_max else None
        self._trend = Trend()
        self._done: tuple[float, int] | None = None
        self._done_per_s = 0.0

    def look(self) -> None:
        """Scale, if it is time to."""
        bounds, pool, shared = self._bounds, self._arbiter.pool, self._arbiter.shared
        if bounds is None or self._arbiter.burst or self._arbiter.commands.rolling or shared.get(HeaderField.PAUSED):
            return
        now_s = time.monotonic()
        self._measure(now_s)
        backlog_ns = shared.get(HeaderField.BACKLOG_NS)
        if not backlog_ns or now_s - backlog_ns / NS > BACKLOG_FRESH_S:
            return
        backlog = shared.get(HeaderField.BACKLOG)
        clear_s = clear_time_s(backlog, self._done_per_s)
        before = pool.size
        self._trend, workers = decide(self._trend, before, clear_s, bounds, now_s)
        if workers != before:
            self._arbiter.log.info(
                "autoscaled", workers=workers, before=before, backlog=backlog, done_per_s=round(self._done_per_s, 1)
            )
            pool.scale(workers)

    def _measure(self, now_s: float) -> None:
        done = self._arbiter.shared.total(SlotField.DONE)
        if self._done is not None and now_s > self._done[0]:
            rate = (done - self._done[1]) / (now_s - self._done[0])
            self._done_per_s += _SMOOTHING * (rate - self._done_per_s)
        self._done = now_s, done


def _private_bytes(pid: int) -> int:
    """What is the process's own; 0 when it has just left."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0
