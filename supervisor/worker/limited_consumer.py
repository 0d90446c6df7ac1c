"""The consumer of a handler with `key`, `group_concurrency` or `rate`: its messages may have to wait for others.

What waits is in Redis and not in memory. A message gets its turn first, then its rate, and keeps its turn meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING

from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.worker.consumer import Consumer
from supervisor.worker.rate_gate import RateGate
from supervisor.worker.read_limit import ReadLimit
from supervisor.worker.source import by_id
from supervisor.worker.turn_gate import TurnGate
from supervisor.worker.turn_settler import TurnSettler

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from supervisor.broker.group_reader import Reply
    from supervisor.handling.loader import HandlerSpec
    from supervisor.messages import Message
    from supervisor.worker.adopted import Adopted
    from supervisor.worker.pending import PendingList
    from supervisor.worker.resources import Resources
    from supervisor.worker.source import Source

#: While this many messages of a group wait for their turns, or for their rate, nothing more is read.
WAITING_MAX = 1_000_000


class LimitedConsumer(Consumer):
    """One (stream, group) in one worker, within limits that hold for all workers."""

    def __init__(self, spec: HandlerSpec, resources: Resources, sources: tuple[Source, Source]) -> None:
        super().__init__(spec, resources, sources)
        self._turns: TurnGate | None = None
        if isinstance(resources.settler, TurnSettler):
            self._turns = TurnGate(spec, resources.settler, resources.control, self._failures, self.retries, sources)
            for source, pending in self._pending.items():
                pending.admit = partial(self._admit_found, source)
        #: What the scan under way has been given turns for.
        self._admitted: list[Message] = []
        #: Entries that `_start_found` is about to start.
        self._starting: set[bytes] = set()
        #: Entries that were started since the scan under way began; None when there is none.
        self._started: set[bytes] | None = None
        self._rates = RateGate(spec, resources, self._failures, sources) if spec.options.rate else None
        self._limit = _ReadLimit(spec, resources, self.executor, self.retries, self.circuit)
        self._limit.gates = [gate for gate in (self._turns, self._rates) if gate is not None]

    def tasks(self) -> list[Coroutine[None, None, None]]:
        """Return what runs beside the consumer."""
        found = [self._look_at_turns(self._turns)] if self._turns is not None else []
        return [*found, self._run_due(self._rates)] if self._rates is not None else found

    async def run_isolated(self, message: Message) -> None:
        """Run a suspect at once; those that come after it wait for its rate."""
        if self._rates is not None:
            with contextlib.suppress(*REDIS_FAULTS):
                await self._rates.reserve([message], at_once=True)
        await super().run_isolated(message)

    async def _look_at_turns(self, turns: TurnGate) -> None:
        """Take over messages whose turns have come, until cancelled; not before they may be started."""
        await self._control.until(lambda: self.opened)
        await turns.run(self._find_again)

    async def _run_due(self, rates: RateGate) -> None:
        """Run messages that waited for their rate when they are due, until cancelled."""
        while True:
            await rates.wait_due()
            await self._control.until(lambda: self.opened and self.executor.in_hand < self.executor.limit)
            if not await self._control.until_may_start():
                return
            try:
                due = await rates.take_due(self.executor.limit - self.executor.in_hand)
                self._start_soon(by_id(due if self._turns is None else self._turns.hold(due)))
                await rates.end_change()
            except REDIS_FAULTS:
                await self._find_again()

    async def _receive(self) -> Reply:
        """Return the replies of all reads on the wire as one: what each script costs is shared by more messages.

        Where there are two, none waits at the server.
        """
        reply = await super()._receive()
        while self._reader.outstanding:
            reply = [*reply, *await super()._receive()]
        return reply

    async def _hand_over(self, reply: Reply, got: int, *, is_backlog: bool) -> None:
        """Hand what may run of a batch to the executor, and send the next read.

        In a backlog it is sent before the batch is handled, and after it was given its turns: the server would do the
        read first.
        """
        received_s = time.time()
        found: dict[Source, list[Message]] = {}
        for key, entries in reply:
            source = self._sources[key]
            messages = source.new_messages(entries)
            source.note_waits(messages, received_s)
            found.setdefault(source, []).extend(messages)
        starting: list[Message] = []
        try:
            for source, messages in found.items():
                starting += await self._admit_new(source, messages)
            if is_backlog:
                await self._read_ahead(got)
        except REDIS_FAULTS:  # these have their turns: no scan finds them
            self._start_soon(starting)
            raise
        self._start_soon(starting)
        await asyncio.sleep(0)
        if not is_backlog:
            await self._read_ahead(0)

    async def _admit_new(self, source: Source, messages: list[Message]) -> list[Message]:
        """Return those of the messages that may start now. Raises redis-py's errors and OSError."""
        admitted = messages if self._turns is None else await self._turns.admit(source, messages, new=True)
        starting = await self._reserve(admitted)
        pace = self._limit.pace
        if len(starting) * 2 < len(messages):  # what waits is not held here: look further, for what may run
            pace.count = min(pace.batch_size, 2 * pace.count)
        return starting

    async def _start_found(self, messages: list[Message]) -> None:
        entries = {message.entry for message in messages}
        self._starting |= entries
        try:
            await self._start_allowed(messages)
        except REDIS_FAULTS:  # some of them may wait in Redis now: a scan shows which ones
            is_asked = False
        else:
            is_asked = True
        finally:
            self._starting -= entries
        if not is_asked:  # not before: a scan leaves out what is about to start
            await self._find_again()

    async def _start_allowed(self, found: list[Message]) -> None:
        """Start those that have their turns and whose rate allows it. Raises redis-py's errors and OSError."""
        if self._rates is not None:
            # What has to wait may be taken over by any worker, which must know of the attempts that have failed.
            await self._control.until(lambda: self._control.stopping or not self._is_recording(found))
            if self._control.stopping:
                return
        messages = found
        if self._turns is not None:
            try:
                messages = by_id(await self._turns.again(found))
            except REDIS_FAULTS:
                self._turns.forget(found)
                raise
        messages = await self._reserve(messages)
        self._note_started(found)
        self._start_soon(messages)

    def _is_recording(self, messages: list[Message]) -> bool:
        return any(self._settler.is_recording(message.origin, message.entry) for message in messages)  # type: ignore[arg-type]

    def _start_soon(self, messages: list[Message]) -> None:
        """Have messages handled: when a suspect runs alone, which may have begun while Redis was asked, after it."""
        self._note_started(messages)
        if not self._control.isolating:
            self._start(messages)
            return
        for message in messages:
            self.retries.add(message, 0)

    def _note_started(self, messages: list[Message]) -> None:
        if self._started is not None:
            self._started.update(message.entry for message in messages)

    async def _reserve(self, messages: list[Message]) -> list[Message]:
        """Return those of the messages whose rate lets them start now. Raises redis-py's errors and OSError."""
        if self._rates is None:
            return messages
        try:
            starting, waiting = await self._rates.reserve(messages)
        except REDIS_FAULTS:
            if self._turns is not None:
                self._turns.forget(messages)
            raise
        if self._turns is not None:
            self._turns.forget(waiting)
        return by_id(starting)

    async def _find_again(self) -> None:
        """Have the pending lists read again."""
        self._rescan_due = True
        self._control.notify()
        await self.unblock()

    async def _make_groups(self) -> dict[Source, PendingList]:
        readable = await super()._make_groups()
        if self._turns is not None:
            await self._turns.begin()
        if self._rates is not None:
            await self._rates.begin()
        return readable

    async def _admit_found(self, source: Source, messages: list[Message]) -> list[Message]:
        assert self._turns is not None
        admitted = await self._turns.admit(source, messages, new=False)
        self._admitted += admitted
        return admitted

    async def _scan(self) -> Adopted:
        self._admitted, self._started = [], set()
        try:
            adopted = await super()._scan()
        except REDIS_FAULTS:  # the next scan has to find these again
            if self._turns is not None:
                self._turns.forget(self._admitted)
            raise
        finally:
            started, self._started = self._started, None
        if self._rates is not None:  # some may have been started since, and even have ended
            adopted.leave_out({*started, *self._starting, *(message.entry for message in self._left())})
        return adopted

    async def _nothing_left(self) -> bool:
        await self._settler.flush()  # an answer that is still to come may bring the next message of a key
        if self._starting or (self._rates is not None and self._rates.waiting):
            return False
        return await super()._nothing_left()


class _ReadLimit(ReadLimit):
    """Nothing is read while too many messages of the group wait."""

    gates: list[TurnGate | RateGate]

    def room(self, coming: int = 0) -> int:
        """Return how many more messages may be read; 0 or less: none."""
        return 0 if any(gate.waiting >= WAITING_MAX for gate in self.gates) else super().room(coming)
