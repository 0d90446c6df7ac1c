"""Counts what the service publishes: messages by stream and outcome, and how long it takes to store them."""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from supervisor.core.field_text import Value
from supervisor.errors import IdempotencyError, NotConfirmedError, PublishError, PublishUnknownError
from supervisor.publisher import Published, PublishedBatch, Publisher
from supervisor.shared_figures import REDIS_BOUNDS_S

#: Clients choose the names, so their number needs a bound: the streams after these are counted together, unless they
#: have handlers.
STREAMS_MAX = 500
OTHER = "<other>"
_Stored = TypeVar("_Stored", Published, PublishedBatch)


class Produced:
    """The counters of one process."""

    def __init__(self) -> None:
        #: (stream, outcome) -> messages.
        self.messages: Counter[tuple[str, str]] = Counter()
        #: Streams that have handlers, as far as they are known.
        self.handled: set[str] = set()
        #: Publishes that `took` was called for: the counts of single buckets, and their sum.
        self.buckets = [0] * (len(REDIS_BOUNDS_S) + 1)
        self.sum_s = 0.0
        self._streams: set[str] = set()

    def count(self, stream: str, outcome: str, messages: int) -> None:
        """Count messages of a publish."""
        if stream not in self._streams and stream not in self.handled:
            if len(self._streams) + len(self.handled) >= STREAMS_MAX:
                stream = OTHER
            else:
                self._streams.add(stream)
        self.messages[stream, outcome] += messages

    def took(self, duration_s: float) -> None:
        """Note how long a publish took, from the call to the answer of Redis."""
        self.buckets[bisect_left(REDIS_BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s


class CountingPublisher(Publisher):
    """A publisher that counts what it does."""

    def __init__(self, url: str, produced: Produced, **limits: Any) -> None:
        """`produced` gets the counts; `limits` are those of `Publisher`."""
        super().__init__(url, **limits)
        self._produced = produced

    async def _store_one(self, stream: str, fields: Mapping[str, Value]) -> Published:
        return await self._counted(stream, 1, super()._store_one(stream, fields))

    async def _store(self, stream: str, messages: Sequence[Mapping[str, Value]], options: Any) -> PublishedBatch:
        # How long replicas and disks take, or the two commands of a message for later, says nothing of publishes.
        is_plain = options.confirmation is None and options.when is None
        storing = super()._store(stream, messages, options)
        return await self._counted(stream, len(messages), storing, is_measured=is_plain)

    async def evaluate(
        self,
        script: str,
        keys: Sequence[str],
        *arguments: str | bytes | int,
        repeatable: bool = False,
        published: Callable[[Any], Published] | None = None,
    ) -> Any:
        """Run a script as `Publisher.evaluate` does, and count the message that it publishes."""
        running = super().evaluate(script, keys, *arguments, repeatable=repeatable)
        if published is None:
            return await running
        reply: Any = None

        async def store() -> Published:
            nonlocal reply
            reply = await running
            return published(reply)

        # How long a script takes says nothing of publishes.
        await self._counted(keys[0], 1, store(), is_measured=False)
        return reply

    async def _counted(
        self, stream: str, messages: int, storing: Awaitable[_Stored], *, is_measured: bool = True
    ) -> _Stored:
        began_s = time.monotonic()
        try:
            stored = await storing
        except PublishError as error:
            self._produced.count(stream, _outcome_of(error), messages)
            raise
        if is_measured:
            self._produced.took(time.monotonic() - began_s)
        outcome = "repeated" if stored.replayed else "later" if stored.due is not None else "stored"
        self._produced.count(stream, outcome, messages)
        return stored


def _outcome_of(error: PublishError) -> str:
    if isinstance(error, NotConfirmedError):
        return "stored"
    if isinstance(error, PublishUnknownError):
        return "unknown"
    return "conflict" if isinstance(error, IdempotencyError) else "refused"
