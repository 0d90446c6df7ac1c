"""A rolling restart: one slot after the other is drained and started anew, and the next only when it is READY.

It stops at the first worker that does not come up: the others stay as they are.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from supervisor.core.slot import State

if TYPE_CHECKING:
    from supervisor.arbiter.worker_group import WorkerGroup

#: A new worker must stay READY for this long before the next one is drained.
STEADY_S = 0.2


class RollingRestart:
    """One such restart of the workers that run when it begins."""

    def __init__(self, pool: WorkerGroup, drain_s: float) -> None:
        """Takes note of who runs; `step` begins."""
        self._pool = pool
        self._drain_s = drain_s
        self._todo = sorted(slot.number for slot in pool.slots.values() if slot.wanted)
        self._current: tuple[int, int] | None = None
        self.total = len(self._todo)
        self.done = 0
        #: Why it was given up.
        self.error = ""

    @property
    def is_over(self) -> bool:
        """Nothing is left to do."""
        return bool(self.error) or (self._current is None and not self._todo)

    def describe(self) -> dict[str, Any]:
        """For status."""
        return {"kind": "restart", "phase": "rolling", "done": self.done, "total": self.total}

    @property
    def slot(self) -> int | None:
        """The slot whose worker is being replaced."""
        return None if self._current is None else self._current[0]

    def step(self) -> float:
        """Go on as far as possible; look again after so many seconds, or (infinity) when a slot changes."""
        while not self.is_over:
            if self._current is None:
                self._begin(self._todo.pop(0))
                continue
            wait_s = self._look(*self._current)
            if wait_s > 0:
                return wait_s
        return math.inf

    def _begin(self, number: int) -> None:
        slot = self._pool.slots[number]
        self._current = number, slot.incarnation
        if slot.living:
            self._pool.drain(number, time.monotonic() + self._drain_s)
        else:
            self._pool.start_now(number)

    def _look(self, number: int, incarnation: int) -> float:
        """How long to wait for this slot; 0 when it is finished, one way or the other."""
        slot = self._pool.slots[number]
        if not slot.wanted:
            self._current = None
            return 0.0
        if slot.incarnation == incarnation:
            return math.inf
        failed = slot.state is State.FAILED or slot.state is State.BACKOFF or slot.incarnation > incarnation + 1
        if failed:
            self.error = f"the new worker in slot {number} did not stay up"
            self._current = None
            return 0.0
        if slot.state is not State.READY or slot.ready_s is None:
            return math.inf
        left_s = slot.ready_s + STEADY_S - time.monotonic()
        if left_s > 0:
            return left_s
        self.done += 1
        self._current = None
        return 0.0
