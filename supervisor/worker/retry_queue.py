"""The messages that failed and wait for their next attempt. They stay pending in Redis."""

from __future__ import annotations

import asyncio
import heapq
from itertools import count
from typing import TYPE_CHECKING

from supervisor.broker.cancelling import wait_at_most

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.messages import Message


class RetryQueue:
    """A queue by due time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, Message]] = []
        self._order = count()
        self._first_changed = asyncio.Event()

    def __len__(self) -> int:
        """Return how many messages wait."""
        return len(self._heap)

    def messages(self) -> Iterator[Message]:
        """Return the messages that wait, in no particular order."""
        return (message for _, _, message in self._heap)

    def add(self, message: Message, delay_s: float) -> None:
        """Make `message` due in `delay_s` seconds."""
        heapq.heappush(self._heap, (self._loop.time() + delay_s, next(self._order), message))
        if self._heap[0][2] is message:
            self._first_changed.set()

    @property
    def any_due(self) -> bool:
        """Whether some message is due."""
        return bool(self._heap) and self._heap[0][0] <= self._loop.time()

    def advance(self, seconds: float) -> None:
        """Make all due that much sooner, for tests."""
        self._heap = [(due_s - seconds, order, message) for due_s, order, message in self._heap]
        self._first_changed.set()

    async def wait_due(self) -> None:
        """Wait until some message is due."""
        while not self.any_due:
            self._first_changed.clear()
            await wait_at_most(self._heap[0][0] - self._loop.time() if self._heap else None, self._first_changed)

    def take_due(self) -> list[Message]:
        """Remove and return all that are due."""
        now_s, due = self._loop.time(), []
        while self._heap and self._heap[0][0] <= now_s:
            due.append(heapq.heappop(self._heap)[2])
        return due
