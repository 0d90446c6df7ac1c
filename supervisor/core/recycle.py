"""Which worker is due to be replaced before it does harm: by growth of its own memory, messages or age. Pure.

Growth is counted from READY and in private pages only: what is shared with the arbiter is the same for
all, and a limit on the whole would replace workers of a large parent for ever (celery#4125).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: No worker is replaced for its growth before this: caches and pools fill up first.
GROWN_UP_S = 5.0


@dataclass(frozen=True, slots=True)
class RecycleLimits:
    """What a worker may reach; 0: no limit."""

    growth_bytes: int = 0
    messages: int = 0
    age_s: float = 0.0

    @property
    def any(self) -> bool:
        """There is a limit at all."""
        return bool(self.growth_bytes or self.messages or self.age_s)


@dataclass(frozen=True, slots=True)
class WorkerUsage:
    """What a worker has reached since it was READY."""

    slot: int
    age_s: float
    messages: int
    growth_bytes: int


def most_overdue(workers: Iterable[WorkerUsage], ceilings: RecycleLimits) -> tuple[int, str] | None:
    """(slot, reason) of the worker that is furthest beyond a limit; None: none is."""
    worst, found = 1.0, None
    for worker in workers:
        for share, reason in _shares(worker, ceilings):
            if share >= worst:
                worst, found = share, (worker.slot, reason)
    return found


def _shares(worker: WorkerUsage, ceilings: RecycleLimits) -> Iterable[tuple[float, str]]:
    if ceilings.growth_bytes and worker.age_s >= GROWN_UP_S:
        yield worker.growth_bytes / ceilings.growth_bytes, "memory"
    if ceilings.messages:
        yield worker.messages / ceilings.messages, "messages"
    if ceilings.age_s:
        yield worker.age_s / ceilings.age_s, "age"
