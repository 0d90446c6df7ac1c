"""What one consumer has of all that its handler has in hand.

A handler has one executor and one heap of retries, so that its concurrency holds whatever stream a message
comes from. Beside the stream's own messages there may be copies of replayed ones: these are few, and so that a
busy stream does not keep them out for ever, their room is counted as if they were alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.worker.delivery import Delivery
    from supervisor.worker.executor import Executor
    from supervisor.worker.waiting import Waiting


class Share:
    """The deliveries of one source."""

    def __init__(self, executor: Executor, waiting: Waiting, *, copied: bool) -> None:
        """`copied`: those that are copies; else all others."""
        self.executor = executor
        self.waiting = waiting
        self.copied = copied

    def in_hand(self) -> Iterator[Delivery]:
        """Its own that run or are ready to."""
        return (delivery for delivery in self.executor.deliveries() if delivery.copied == self.copied)

    def left(self) -> Iterator[Delivery]:
        """Its own that are not settled: in hand, or waiting for a retry."""
        yield from self.in_hand()
        yield from (delivery for delivery in self.waiting.deliveries() if delivery.copied == self.copied)

    @property
    def room(self) -> int:
        """How many more may be read to be run at once."""
        return self.executor.limit - sum(1 for _ in self.in_hand()) if self.copied else self.executor.room

    @property
    def unstarted(self) -> int:
        """How many wait for their turn."""
        if self.copied:
            return sum(delivery.copied for delivery in self.executor.deliveries(running=False))
        return self.executor.unstarted
