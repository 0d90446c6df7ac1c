"""Starts the messages of a handler with `rate` when their rate allows it.

1. Before a message starts, its time is reserved, once. When that is later, the message waits in Redis and is forgotten
   here, so that a value of `rate_key` at its limit holds up no other, however many of its messages wait.
2. What is due is taken over by whichever worker has room for it, and starts without another reservation.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from supervisor.broker.cancelling import wait_at_most
from supervisor.broker.rates import Rates, Request
from supervisor.core.message_key import cost_reader, key_reader
from supervisor.core.rate import parse_rate
from supervisor.core.retry_record import parse_retry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.handling.loader import HandlerSpec
    from supervisor.messages import Message
    from supervisor.worker.resources import Resources
    from supervisor.worker.retry_or_dead_letter import Failures
    from supervisor.worker.source import Source

#: What other workers have reserved is looked for at least this often.
_LOOK_S = 1.0
#: Messages that become due within this time are taken over together.
_TOGETHER_S = 0.01


class RateGate:
    """The rate of one handler in one worker."""

    def __init__(self, spec: HandlerSpec, resources: Resources, failures: Failures, sources: Sequence[Source]) -> None:
        options = spec.options
        rate = parse_rate(options.rate)
        self._rates = Rates(resources.commands, spec.stream, spec.group, resources.consumer, rate)
        self.begin = self._rates.begin
        self._failures = failures
        self._sources = sources
        self._key = key_reader(options.rate_key)
        self._cost = cost_reader(options.rate_cost)
        self._loop = asyncio.get_running_loop()
        self._due_s = self._loop.time()
        self._sooner = asyncio.Event()
        #: Messages of the group that wait, as far as this worker knows.
        self.waiting = 0
        #: A change of the rate is under way.
        self.is_changing = False

    async def reserve(
        self, messages: Sequence[Message], *, at_once: bool = False
    ) -> tuple[list[Message], list[Message]]:
        """Return those of the messages that start now, and those that wait in Redis.

        With `at_once` all start, and the following ones wait for it. Raises redis-py's errors and OSError.
        """
        starting: list[Message] = []
        waiting: list[Message] = []
        for source in self._sources:
            pairs = [
                (message, request)
                for message in messages
                if message.origin is source and (request := self._request(source, message)) is not None
            ]
            if not pairs:
                continue
            requests = [request for _, request in pairs]
            flags, next_ms = await self._rates.reserve(requests, replays=source.replays, at_once=at_once)
            for (message, _), starts in zip(pairs, flags, strict=True):
                (starting if starts else waiting).append(message)
            self._note_due(next_ms)
        self.waiting += len(waiting)
        return starting, waiting

    async def end_change(self) -> None:
        """End a change of the rate that another worker has left half way. Raises redis-py's errors and OSError."""
        if self.is_changing:
            await self._rates.end_change()

    async def wait_due(self) -> None:
        """Wait until some message may be due."""
        while (wait_s := self._due_s - self._loop.time()) > 0:
            self._sooner.clear()
            await wait_at_most(wait_s, self._sooner)

    async def take_due(self, count: int) -> list[Message]:
        """Take over at most `count` messages that are due. Raises redis-py's errors and OSError."""
        self._due_s = self._loop.time() + _LOOK_S
        due = await self._rates.take_due(count)
        self.waiting = due.waiting
        self._note_due(due.next_ms)
        self.is_changing = due.changing
        found = []
        for taken, record in due.taken:
            source = self._sources[taken.replays]
            (message,) = source.messages([[taken.entry, taken.flat]])
            if retry := parse_retry(record):
                message.failures, message.recorded = retry.attempts, True
            found.append(message)
        return found

    def _note_due(self, next_ms: int | None) -> None:
        if next_ms is None:
            return
        due_s = self._loop.time() + max(next_ms / 1000, _TOGETHER_S)
        if due_s < self._due_s:
            self._due_s = due_s
            self._sooner.set()

    def _request(self, source: Source, message: Message) -> Request | None:
        """Return what the message takes of its rate; None when a function raises, and then it failed."""
        try:
            key, cost = self._key(message), self._cost(message)
        except Exception as error:
            self._failures.failed(message, error)
            return None
        return Request(source.name_of(message), key, cost)
