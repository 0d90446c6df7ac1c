"""The life of one consumer: one (stream, group) in one worker, from its connection to its end.

The way of a message is read from top to bottom in `_fetch`: a batch is received, the next reads are sent, and the batch
is handed to the executor, which calls the handler for each message. Without a backlog the handler comes first. What is
done is noted at its source, and the settler acks it; what failed goes to `Failures`.

The consumer reads its own pending list when it starts, after every lost connection, over a new one where the last was
idle for long, and when it is asked to. It never ends for a fault of Redis.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import TYPE_CHECKING

from supervisor.broker.group_reader import GroupReader
from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.core.backoff import backoff_s
from supervisor.core.lacks import lack_of
from supervisor.shared_figures import FigureField
from supervisor.shared_state import SlotField
from supervisor.worker.adopted import Adopted
from supervisor.worker.circuit_guard import CircuitGuard
from supervisor.worker.cut_off import CutOff
from supervisor.worker.executor import Executor
from supervisor.worker.pending import PendingList
from supervisor.worker.read_limit import ReadLimit
from supervisor.worker.retry_or_dead_letter import Failures
from supervisor.worker.retry_queue import RetryQueue
from supervisor.worker.source import by_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from supervisor.broker.group_reader import Reply
    from supervisor.handling.loader import HandlerSpec
    from supervisor.messages import Message
    from supervisor.worker.resources import Resources
    from supervisor.worker.source import Source

_RECONNECT_BASE_S = 0.05
#: Redis is asked this often while it is away, so that the worker is back within a second or so.
_RECONNECT_MAX_S = 1.0
_THREADS_POLL_S = 0.01
#: A read that has not timed out this long after its time limit never will.
READ_SLACK_S = 5.0
#: How often a consumer without room for more looks again: the number of messages that wait for turns falls silently.
_LOOK_S = 25.0
#: How often a burst looks for new entries while it waits for retries.
_BURST_POLL_S = 0.2
_CANT_READ = "can't read"


class Consumer:
    """One (stream, group) in one worker."""

    def __init__(self, spec: HandlerSpec, resources: Resources, sources: tuple[Source, Source]) -> None:
        """Consume the handler's stream and the replay stream of its group."""
        self.spec = spec
        self._resources = resources
        self._control = resources.control
        self._settler = resources.settler
        self._shared = resources.shared
        self._sources = {source.key_bytes: source for source in sources}
        url, keys, limit_s = resources.redis_url, [source.key for source in sources], resources.connect_timeout_s
        self._reader = GroupReader(url, keys, spec.group, resources.consumer, connect_timeout_s=limit_s)
        self.retries = RetryQueue()
        self._failures = Failures(spec, resources, self.retries)
        self.executor = Executor(spec, resources, self._failures, sources)
        self.circuit = CircuitGuard(spec, resources, self.executor, self._failures, sources[0].marks)
        self._pending = {source: PendingList(spec, source, resources, self._failures) for source in sources}
        self._limit = ReadLimit(spec, resources, self.executor, self.retries, self.circuit)
        for source in sources:
            resources.settler.add(source)
        #: Connected, its groups made and its pending lists read at least once.
        self.opened = False
        #: Redis does not answer; the consumer waits and tries again.
        self.waits_for_redis = False
        self.cut_off = CutOff(sources[0].marks)
        self._answered = self._found_nothing = False
        self._rescans_seen = 0
        self._rescan_due = False

    @property
    def due_s(self) -> float:
        """When what is under way must have ended, by `time.monotonic`; infinity when nothing has to."""
        reading = self._reader.outstanding and not self.waits_for_redis
        return min(self._reader.due_s + READ_SLACK_S if reading else math.inf, self.executor.due_s)

    async def open(self) -> Adopted:
        """Connect, make the groups, and return what a predecessor left. Waits while Redis is away."""
        failures = 0
        while True:
            try:
                await self._reader.connect()
                adopted = await self._scan()
            except REDIS_FAULTS as error:
                failures += 1
                await self._wait_for_redis(error, failures)
                if self._control.stopping:
                    return Adopted()
            else:
                self.waits_for_redis = False
                self.cut_off.connected()
                self._rescan_later()
                self._resources.faults.resolved(_CANT_READ, stream=self.spec.stream, group=self.spec.group)
                return adopted

    async def start(self, adopted: Adopted) -> None:
        """Run what was found, except the suspects; retries wait for their time."""
        for message, delay_s in adopted.waiting:
            self.retries.add(message, delay_s)
        # Batch by batch, because messages that were not submitted are not suspects at the next crash.
        plain, size = by_id(adopted.plain), self.spec.options.batch_size
        for at in range(0, len(plain), size):
            await self._control.until(lambda: not self.executor.unstarted or self._control.stopping)
            if not await self._control.until_may_start():
                return
            await self._start_found(plain[at : at + size])

    async def run(self) -> None:
        """Handle messages until the worker stops, or in a burst until nothing is left."""
        failures = 0
        while not self._control.stopping:
            try:
                await self._fetch()
                return
            except REDIS_FAULTS as error:
                failures = 1 if self._answered else failures + 1
                self._answered = False
                self._limit.pace.lost()
                await self._wait_for_redis(error, failures, reading=True)
            if not self._control.stopping:
                # Ids that are in hand are skipped, so nothing is run twice.
                await self._adopt_alive(await self.open())

    async def run_retries(self) -> None:
        """Run failed messages again when they are due, and those whose turns have come, until cancelled."""
        # The marks in shared memory say what a predecessor had started. `open` reads them; a start changes them.
        await self._control.until(lambda: self.opened)
        while True:
            await self.retries.wait_due()
            if not await self._control.until_may_start():
                return
            due = by_id(self.retries.take_due())
            self.executor.figures.add(FigureField.REDELIVERED, len(due))
            await self._start_found(due)

    def note_refusals(self, refused: Mapping[Source, Exception]) -> None:
        """Note what Redis refuses to settle, by source."""
        self.cut_off.refused(next((refused[source] for source in self._pending if source in refused), None))

    async def charge(self, message: Message) -> bool:
        """Count a crash against a suspect; True when it was one too many and it became a dead letter."""
        return await self._pending[message.origin].charge(message)  # type: ignore[index]

    async def run_isolated(self, message: Message) -> None:
        """Run a suspect with nothing else in hand, marked, and see it settled.

        A thread that is out of time goes on, and the worker is ended for it: the mark stays until it is over.
        """
        message.recorded = True
        pending = self._pending[message.origin]  # type: ignore[index]
        await pending.mark(message.entry)
        self._start([message])
        await self.idle()
        while self.executor.calls.running and not self._control.stopping:
            await self._control.until(lambda: self._control.stopping, _THREADS_POLL_S)
        pending.unmark()
        await self._settler.flush()

    def note_suspects_done(self) -> None:
        """Note in shared memory that no suspect is left, and that none of them runs."""
        for pending in self._pending.values():
            pending.note_cleared()
        self.executor.note_idle()

    def note_failing(self) -> None:
        """Note in shared memory that what ran may have ended this process, and cancel it."""
        self.executor.cancel()  # runners have taken a cancellation, or a stop of the loop, for a failed message
        for source in self._pending:
            source.note_failing()

    async def idle(self) -> None:
        """Wait until nothing is in hand."""
        await self._control.until(lambda: not self.executor.in_hand)

    async def stop(self) -> None:
        """End a blocked read at the server; the messages that it returns are still run.

        Messages that have not been started after `hold_ms` are given back.
        """
        asyncio.get_running_loop().call_later(self.spec.options.hold_ms / 1000, self._give_back)
        await self.unblock()

    async def unblock(self) -> None:
        """End a blocked read now, without losing its messages. Nothing can end a read that is overdue."""
        reader = self._reader
        while reader.may_block and not self.waits_for_redis and time.monotonic() < reader.due_s:
            try:
                await reader.unblock(self._resources.commands)
            except REDIS_FAULTS:  # the other connection may have been lost while it was idle
                await self._control.until(lambda: not reader.may_block, _RECONNECT_BASE_S)
                continue
            # Again, if the read had not reached the server yet.
            await asyncio.sleep(0.01)
            if not (self._control.stopping or self._control.paused or self._rescan_wanted):
                return

    async def close(self, successor: str | None, *, crashed: bool = False) -> None:
        """Cancel what runs; with `successor`, hand what is pending to that consumer and delete this one.

        `crashed`: this process goes on, and a later consumer of the same name must know what ran.
        """
        await self._reader.close()
        if self.opened:  # otherwise the marks are a predecessor's, and its successor will need them
            self.executor.note_idle()  # what is pending now was not running: no successor needs to suspect it
        await asyncio.gather(*self.executor.cancel(), return_exceptions=True)
        for pending in self._pending.values():
            if not crashed:
                await pending.clear_mark()
            try:
                if successor is not None:
                    await pending.hand_over(successor)
            except REDIS_FAULTS as error:  # a keeper does it when Redis is back
                self._resources.faults.redis("can't hand over pending messages", error, stream=self.spec.stream)

    async def _fetch(self) -> None:
        """Read batches and have them handled. Raises redis-py's errors, OSError and TimeoutError."""
        behind_short = False
        while self._reader.outstanding or await self._send_when_allowed():
            asked = self._limit.pace.count
            reply = await self._receive()
            self._answered = True
            self._shared.set(SlotField.FETCH_NS, time.monotonic_ns())
            self.cut_off.answered()
            got = sum([len(entries) for _, entries in reply])
            if got < asked and not behind_short:
                self._limit.pace.came_short(got)
            behind_short = got < asked and self._reader.outstanding > 0
            self._found_nothing = self._resources.burst and not got
            if not got:
                if self._resources.burst and not self._reader.outstanding and await self._nothing_left():
                    return
                continue
            if self._control.isolating:
                await self._control.until(lambda: not self._control.isolating)
            await self._hand_over(reply, got, is_backlog=got >= asked)

    async def _receive(self) -> Reply:
        """Return the next reply."""
        return await self._reader.receive()

    async def _hand_over(self, reply: Reply, got: int, *, is_backlog: bool) -> None:
        """Hand a batch to the executor, and send the next read: in a backlog before, so that Redis works meanwhile."""
        if is_backlog:
            await self._read_ahead(got)
        received_s = time.time()
        for key, entries in reply:
            source = self._sources[key]
            messages = source.new_messages(entries)
            source.note_started(messages[-1].entry)
            self.executor.submit(messages, at_once=not is_backlog)
            source.note_waits(messages, received_s)  # an idle worker's handler has begun: this and the rest can wait
        if self._reader.outstanding > 1 or (self.executor.unstarted and not is_backlog):
            await asyncio.sleep(0)  # the handler starts before the next read, or before the next reply is looked at
        if not is_backlog:
            await self._read_ahead(0)

    async def _start_found(self, messages: list[Message]) -> None:
        """Run messages that were in this consumer's hands before."""
        self._start(messages)

    async def _send_when_allowed(self) -> bool:
        """Send the next read as soon as there is room for what it brings; False when it is time to stop."""
        control, limit = self._control, self._limit
        while not control.stopping:
            limit.observe()
            room = limit.room()
            if self._rescan_wanted or (room > 0 and self._reader.is_stale):
                await self._adopt_alive(await self._scan())
            elif self._found_nothing:
                self._found_nothing = False
                await control.until(lambda: control.stopping or self._rescan_wanted, _BURST_POLL_S)
            elif room > 0:
                await self._send(room)
                return True
            else:
                await control.until(lambda: control.stopping or self._rescan_wanted or limit.room() > 0, _LOOK_S)
        return False

    async def _read_ahead(self, coming: int) -> None:
        """Send the next read before the `coming` messages are handled, where pace allows; two in a deep backlog.

        Where two are on the wire, none waits at the server: CLIENT UNBLOCK would end only the first of them.
        """
        self._limit.observe()
        if self._rescan_wanted or self._reader.is_stale:
            return
        if reads := self._limit.reads_at_once(coming, self._reader.outstanding):
            await self._reader.send(self._limit.pace.count, None, reads=reads)
        elif not self._reader.outstanding and (room := self._limit.room_ahead(coming)) > 0:
            await self._send(room)

    async def _send(self, room: int) -> None:
        pace = self._limit.pace
        pace.count = max(1, min(pace.count, room))
        await self._reader.send(pace.count, None if self._resources.burst else self.spec.options.block_ms)

    def _start(self, messages: Sequence[Message]) -> None:
        """Hand messages, each source's in the order of ids, to the executor."""
        for last in {message.origin: message for message in messages}.values():
            last.origin.note_started(last.entry)  # type: ignore[attr-defined]
        self.executor.submit(messages)

    async def _nothing_left(self) -> bool:
        """Whether no message is in hand and, after one more scan, none is pending here either."""
        if self.executor.in_hand or self.retries:
            return False
        await self._adopt_alive(await self._scan())
        return not (self.executor.in_hand or self.retries)

    @property
    def _rescan_wanted(self) -> bool:
        return self._rescan_due or self._rescans_seen != self._control.rescans

    async def _scan(self) -> Adopted:
        """Read the pending lists, except what is in hand. Raises redis-py's errors, OSError and TimeoutError."""
        self._rescans_seen, self._rescan_due = self._control.rescans, False
        if self._reader.is_stale:  # after a pause, an isolation or slow handlers; the server may be another one by now
            await self._reader.connect()
        readable = await self._make_groups()
        self._reader.select([source.key for source in readable])
        if len(readable) < len(self._pending):
            self._rescan_later()
        adopted = Adopted()
        for source, pending in readable.items():
            known = self._settler.unconfirmed(source)
            known.update(message.entry for message in self._left() if message.origin is source)
            adopted.add(await pending.scan(self._reader, known))
        for pending in readable.values():  # not before: a connection lost between two lists has both read again
            if not pending.opened:
                pending.note_opened(adopted.suspects)
        self.opened = True
        self._control.notify()
        return adopted

    async def _make_groups(self) -> dict[Source, PendingList]:
        """Create the groups where they are missing; return the pending lists of those that can be read."""
        return {source: pending for source, pending in self._pending.items() if await pending.make_group()}

    async def _adopt_alive(self, adopted: Adopted) -> None:
        """Run what was found while this process lives on: none of it can have ended a process."""
        adopted.plain += adopted.suspects
        await self.start(adopted)

    def _rescan_later(self) -> None:
        """Scan again when the server must have noticed the end of the last connection, to which it may still deliver.

        A predecessor's connection counts: its process may be replaced before the server hears of its end.
        """

        def rescan() -> None:
            self._rescan_due = True
            self._control.notify()

        blocked_s = self.spec.options.block_ms / 1000
        asyncio.get_running_loop().call_later(blocked_s + READ_SLACK_S, rescan)

    async def _wait_for_redis(self, error: BaseException, failures: int, *, reading: bool = False) -> None:
        self.cut_off.failed(error, reading=reading, failures=failures)
        await self._reader.close()
        if self._control.stopping:
            return
        self.waits_for_redis = True
        if lack := lack_of(error):
            self._resources.lacks.note(lack, error)
        self._resources.faults.redis(_CANT_READ, error, stream=self.spec.stream, group=self.spec.group)
        self._shared.add(SlotField.RECONNECTS, 1)
        delay_s = backoff_s(max(1, failures), _RECONNECT_BASE_S, _RECONNECT_MAX_S, random.random)
        await self._control.until(lambda: self._control.stopping, delay_s)

    def _left(self) -> Iterator[Message]:
        yield from self.executor.messages()
        yield from self.retries.messages()

    def _give_back(self) -> None:
        self.executor.give_back()
        self._control.notify()
