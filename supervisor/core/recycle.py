"""Decides which worker to replace because of its memory growth, message count or age. Pure.

Growth is counted from READY and in private pages only. Pages shared with the arbiter are the same for
all workers, and a limit on total memory would replace the workers of a large parent forever (celery#4125).
"""

from collections.abc import Iterable
from dataclasses import dataclass

#: No worker is replaced for its growth before this age: caches and pools fill up first.
GROWN_UP_S = 5.0


@dataclass(frozen=True, slots=True)
class RecycleLimits:
    """What a worker may reach; 0 means no limit."""

    growth_bytes: int = 0
    messages: int = 0
    age_s: float = 0.0

    @property
    def any(self) -> bool:
        """Whether there is any limit."""
        return bool(self.growth_bytes or self.messages or self.age_s)


@dataclass(frozen=True, slots=True)
class WorkerUsage:
    """What a worker has reached since it became READY."""

    slot: int
    age_s: float
    messages: int
    growth_bytes: int


def most_overdue(workers: Iterable[WorkerUsage], limits: RecycleLimits) -> tuple[int, str] | None:
    """Return (slot, reason) of the worker that exceeds a limit by the largest factor, or None."""
    worst, overdue = 1.0, None
    for worker in workers:
        for share, reason in _shares(worker, limits):
            if share >= worst:
                worst, overdue = share, (worker.slot, reason)
    return overdue


def _shares(worker: WorkerUsage, limits: RecycleLimits) -> Iterable[tuple[float, str]]:
    if limits.growth_bytes and worker.age_s >= GROWN_UP_S:
        yield worker.growth_bytes / limits.growth_bytes, "memory"
    if limits.messages:
        yield worker.messages / limits.messages, "messages"
    if limits.age_s:
        yield worker.age_s / limits.age_s, "age"
