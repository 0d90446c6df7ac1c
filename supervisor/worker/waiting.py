"""The deliveries that failed and wait for their next attempt."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from supervisor.worker.delivery import Delivery


class Waiting:
    """A heap by due time with one timer; hands over all that is due at once."""

    def __init__(self, deliver: Callable[[list[Delivery]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._deliver = deliver
        self._heap: list[tuple[float, int, Delivery]] = []
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None
        self._held = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._heap)

    def deliveries(self) -> Iterable[Delivery]:
        """Those that wait."""
        return (delivery for _, _, delivery in self._heap)

    def add(self, delivery: Delivery, delay_s: float) -> None:
        """Hand `delivery` over in `delay_s` seconds."""
        heapq.heappush(self._heap, (self._loop.time() + delay_s, next(self._order), delivery))
        self._set_timer()

    def hold(self) -> None:
        """Hand over nothing until `release`; who waits stays pending in Redis."""
        self._held = True
        self._set_timer()

    def release(self) -> None:
        """Go on, with what became due meanwhile first."""
        self._held = False
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap and not self._held:
            self._timer = self._loop.call_at(self._heap[0][0], self._due)

    def _due(self) -> None:
        now_s = self._loop.time()
        due = []
        while self._heap and self._heap[0][0] <= now_s:
            due.append(heapq.heappop(self._heap)[2])
        self._set_timer()
        if due:
            self._deliver(due)
