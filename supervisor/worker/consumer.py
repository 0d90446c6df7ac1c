"""Reads one group's messages as one consumer and sees each one settled.

1. Adopts its own pending list when it starts and after every lost connection.
2. Reads new entries in batches, the next one on the wire while the last is handled, as much as
   `core.pace` and the handler's concurrency allow.
3. Decides what becomes of each delivery and leaves the sending to the settler.

It never cancels a read and never ends for a fault of Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from supervisor.board import Word
from supervisor.broker.scripts import DELETE_CONSUMER
from supervisor.broker.wire import BlockingReader
from supervisor.core.backoff import backoff_s
from supervisor.core.faults import Fault, fault_of
from supervisor.core.ids import parse_id
from supervisor.core.outcome import CRASHED, Dead, outcome_of
from supervisor.core.pace import Pace
from supervisor.worker.adopt import Adopted, sort_out
from supervisor.worker.delivery import Delivery
from supervisor.worker.executor import Executor
from supervisor.worker.letter import dead_letter
from supervisor.worker.settler import Keys
from supervisor.worker.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Executor as Threads

    from supervisor.board import RowBoard, SlotBoard
    from supervisor.broker.wire import Wire
    from supervisor.handling.load import HandlerSpec
    from supervisor.worker.settler import Settler

_RECONNECT_BASE_S = 0.05
_RECONNECT_MAX_S = 2.0
_SWEEP_COUNT = 500
#: How often a burst looks for new entries while it waits for retries.
_BURST_POLL_S = 0.2
#: Acks that may wait for confirmation, in batches, before reading stops.
_BACKLOG_BATCHES = 8


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the consumers of one worker share."""

    redis_url: str
    #: The consumer's name in every group.
    name: str
    wire: Wire
    settler: Settler
    board: SlotBoard
    threads: Threads
    threads_max: int
    connect_timeout_s: float
    #: Logs a fault of Redis; limits its own rate.
    complain: Callable[[str, BaseException], None]
    #: Read what is there and end.
    burst: bool


class Consumer:
    """One (stream, group) in one worker."""

    def __init__(self, spec: HandlerSpec, around: Surroundings, row: RowBoard) -> None:
        """`row` is where it marks what it has in hand."""
        options = spec.options
        self.spec = spec
        self._around = around
        self._row = row
        self._keys = Keys.of(spec.stream, spec.group)
        self._reader = BlockingReader(
            around.redis_url, spec.stream, spec.group, around.name, connect_timeout_s=around.connect_timeout_s
        )
        self.executor = Executor(spec, self, around.threads, around.threads_max)
        self.waiting = Waiting(self._deliver)
        self._pace = Pace(options.hold_ms / 1000, options.batch_size)
        self._changed = asyncio.Event()
        self._acks: list[bytes] = []
        self._flush_due = False
        self._loop = asyncio.get_running_loop()
        self.stopping = False
        self.paused = False
        self.sweep_wanted = False
        #: Redis does not answer: it waits and tries again.
        self.cut_off = False
        #: Connected, its group made and its pending list read at least once.
        self.opened = False
        self._progressed = False
        #: In a burst: the last read found nothing.
        self._drained = False

    # What becomes of a delivery.

    def done(self, delivery: Delivery) -> None:
        """The handler returned."""
        if delivery.recorded:
            self._around.settler.ack_retried(self._keys, delivery.id)
            self._around.board.add(Word.DONE, 1)
            return
        self._acks.append(delivery.id)
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_acks)

    def failed(self, delivery: Delivery, error: BaseException) -> None:
        """The handler raised: retry with backoff, or give the message up."""
        outcome = outcome_of(error, delivery.failed_before, self.spec.options, random.random)
        if isinstance(outcome, Dead):
            self._bury(delivery, outcome, error)
            return
        self._around.board.add(Word.FAILED, 1)
        delivery.failed_before = outcome.attempts
        delivery.recorded = True
        self.waiting.add(delivery, outcome.delay_s)
        due_ms = int((time.time() + outcome.delay_s) * 1000)
        self._around.settler.retry_later(self._keys, delivery.id, outcome.attempts, due_ms)

    def progress(self) -> None:
        """There is room for more."""
        self._changed.set()

    def _bury(self, delivery: Delivery, outcome: Dead, error: BaseException | None) -> None:
        letter = dead_letter(
            delivery,
            reason=outcome.reason,
            error=error,
            attempts=outcome.attempts,
            worker=self._around.name,
            handler=self.spec.name,
            now_ms=int(time.time() * 1000),
        )
        self._around.settler.dead(self._keys, delivery.id, letter)
        self._around.board.add(Word.DEAD, 1)

    def _flush_acks(self) -> None:
        self._flush_due = False
        acks, self._acks = self._acks, []
        if acks:
            self._around.settler.ack(self._keys, acks)
            self._around.board.add(Word.DONE, len(acks))
            self._around.board.add(Word.BATCHES, 1)

    def _deliver(self, deliveries: list[Delivery]) -> None:
        self.executor.submit(deliveries)

    # The life of a consumer.

    async def open(self) -> Adopted:
        """Connect, make the group, and find what a predecessor left. Waits while Redis is away."""
        failures = 0
        while True:
            try:
                await self._reader.connect()
                await self._make_group()
                adopted = await self._sweep()
            except (RedisError, OSError, TimeoutError) as error:
                failures += 1
                await self._wait_out(error, failures)
                if self.stopping:
                    return Adopted()
            else:
                self.cut_off = False
                self.opened = True
                return adopted

    def start(self, adopted: Adopted) -> None:
        """Run what was found; retries wait for their time."""
        for delivery, delay_s in adopted.waiting:
            self.waiting.add(delivery, delay_s)
        self._run_new(adopted.plain)

    async def run_alone(self, delivery: Delivery) -> None:
        """Run a suspect with nothing else in hand, marked, and see it settled."""
        delivery.recorded = True
        self._row.set_alone(*parse_id(delivery.id))
        self.executor.submit([delivery])
        await self.executor_idle()
        await self._around.settler.flush()
        self._row.set_alone(0, 0)

    async def run(self) -> None:
        """Read until told to stop, or in a burst until nothing is left."""
        failures = 0
        while not self.stopping:
            try:
                await self._read()
                return
            except (RedisError, OSError, TimeoutError) as error:
                failures = 1 if self._progressed else failures + 1
                self._progressed = False
                await self._wait_out(error, failures)
            if not self.stopping:
                # Known ids are skipped, so what is still in hand here is not run twice.
                adopted = await self.open()
                adopted.plain += adopted.suspects
                self.start(adopted)

    async def stop_reading(self) -> None:
        """Take nothing new: a blocked read is ended at the server, and what it brought is still run."""
        self.stopping = True
        self._changed.set()
        await self.unblock()

    async def unblock(self) -> None:
        """End a blocked read now, without losing what it brings."""
        while self._reader.outstanding and not self.cut_off:
            try:
                await self._around.wire.call("CLIENT", "UNBLOCK", self._reader.client_id)
            except (RedisError, OSError, TimeoutError):
                return
            # Again, if the read had not reached the server yet.
            await asyncio.sleep(0.01)
            if not (self.stopping or self.paused or self.sweep_wanted):
                return

    async def executor_idle(self) -> None:
        """Wait until nothing is in hand."""
        while self.executor.in_hand:
            self._changed.clear()
            await self._changed.wait()

    async def leave(self, heir: str | None) -> None:
        """Close; with `heir`, hand what waits for a retry to that consumer and delete this one."""
        self.waiting.stop()
        await self._reader.close()
        await self.executor.abort()
        if heir is None:
            return
        ids = list(self.waiting.ids())
        keys, wire = self._keys, self._around.wire
        for at in range(0, len(ids), _SWEEP_COUNT):
            await wire.call("XCLAIM", keys.stream, keys.group, heir, 0, *ids[at : at + _SWEEP_COUNT], "JUSTID")
        await wire.script(DELETE_CONSUMER, [keys.stream], keys.group, self._around.name)

    # Reading.

    async def _read(self) -> None:
        while True:
            if self.sweep_wanted and not self._reader.outstanding:
                self.sweep_wanted = False
                adopted = await self._sweep()
                adopted.plain += adopted.suspects
                self.start(adopted)
            if not self._reader.outstanding:
                if not await self._room():
                    return
                if self.sweep_wanted:
                    continue
                await self._send_read()
            asked = self._pace.count
            entries = await self._reader.receive()
            self._around.board.set(Word.FETCH_NS, time.monotonic_ns())
            self._progressed = True
            self._drained = self._around.burst and not entries
            if len(entries) < asked:
                self._pace.came_short(len(entries))
            if entries:
                await self._read_ahead(len(entries))
                self._run_entries(entries)
            elif self._around.burst and self._nothing_left():
                return

    async def _read_ahead(self, coming: int) -> None:
        self._pace.observe(*self.executor.meter.take())
        if not (self._pace.read_ahead and self._may_read()):
            return
        # While no handler waits for anything, pace alone limits; else what would wait behind them does.
        room = self.executor.room - coming if self.executor.running else self.spec.options.batch_size
        if room > 0:
            await self._send_read(room)

    async def _room(self) -> bool:
        """Wait until a read is allowed; False when it is time to stop."""
        while not self.stopping:
            self._pace.observe(*self.executor.meter.take())
            if self.sweep_wanted or (self._may_read() and self.executor.room > 0 and not self.executor.unstarted):
                if not self._drained:
                    return True
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _BURST_POLL_S if self._drained else None)
            self._drained = False
        return False

    def _may_read(self) -> bool:
        options = self.spec.options
        return not (
            self.stopping
            or self.paused
            or self.sweep_wanted
            or len(self.waiting) >= options.max_waiting
            or self._around.settler.backlog >= options.batch_size * _BACKLOG_BATCHES
        )

    async def _send_read(self, room: int | None = None) -> None:
        count = max(1, min(self._pace.count, self.executor.room if room is None else room))
        self._pace.count = count
        await self._reader.send(count, block_ms=None if self._around.burst else self.spec.options.block_ms)

    def _nothing_left(self) -> bool:
        return not self.executor.in_hand and not len(self.waiting)

    def _run_entries(self, entries: list[list[Any]]) -> None:
        """What `>` brings is never nil: hand it on."""
        self._run_new([Delivery(entry[0], entry[1]) for entry in entries])

    def _run_new(self, deliveries: list[Delivery]) -> None:
        if not deliveries:
            return
        # One mark a batch: at worst, a crash has a few more of them run one at a time.
        last = max(parse_id(deliveries[-1].id), self._row.started())
        self._row.set_started(*last)
        self.executor.submit(deliveries)

    # Adoption and faults.

    def _known(self) -> set[bytes]:
        return {*self.executor.ids(), *self.waiting.ids(), *self._acks} | self._around.settler.ids()

    async def _sweep(self) -> Adopted:
        """Read one's own pending list; what is in hand already is left out."""
        found: list[Delivery] = []
        known = self._known()
        after: bytes = b"0"
        while True:
            await self._reader.send(_SWEEP_COUNT, start=after.decode())
            entries = await self._reader.receive()
            if not entries:
                break
            after = entries[-1][0]
            gone = [entry[0] for entry in entries if entry[1] is None]
            if gone:
                self._around.settler.ack(self._keys, gone)
                self._around.board.add(Word.TRIMMED, len(gone))
            found += [Delivery(entry[0], entry[1]) for entry in entries if entry[1] is not None and entry[0] not in known]
        if not found:
            return Adopted()
        self._around.board.add(Word.ADOPTED, len(found))
        found = await self._charge_crash(found)
        records = await self._records([delivery.id for delivery in found])
        started = self._row.started() if not self.opened else (0, 0)
        return sort_out(found, records, started, int(time.time() * 1000))

    async def _records(self, ids: list[bytes]) -> list[bytes | None]:
        records: list[bytes | None] = []
        for at in range(0, len(ids), _SWEEP_COUNT):
            records += await self._around.wire.call("HMGET", self._keys.retries, *ids[at : at + _SWEEP_COUNT])
        return records

    async def _charge_crash(self, found: list[Delivery]) -> list[Delivery]:
        """Count the crash against the message that was alone in hand; too many make it a dead letter."""
        alone = None if self.opened else self._row.alone()
        if alone is None:
            return found
        self._row.set_alone(0, 0)
        for delivery in found:
            if parse_id(delivery.id) == alone:
                crashes = int(await self._around.wire.call("HINCRBY", self._keys.crashes, delivery.id, 1))
                if crashes >= self.spec.options.max_crashes:
                    self._bury(delivery, Dead(CRASHED, crashes), None)
                    return [other for other in found if other is not delivery]
        return found

    async def _make_group(self) -> None:
        spec = self.spec
        # A group that was there and is gone starts at 0, or what arrived meanwhile would be skipped.
        start = "0" if self.opened else spec.options.start
        try:
            await self._around.wire.call("XGROUP", "CREATE", spec.stream, spec.group, start, "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _wait_out(self, error: BaseException, failures: int) -> None:
        await self._reader.close()
        fault = fault_of(error)
        if self.stopping or (fault is Fault.UNBLOCKED):
            return
        self.cut_off = True
        self._around.complain(f"read {self.spec.stream} as {self.spec.group}", error)
        self._around.board.add(Word.RECONNECTS, 1)
        delay_s = backoff_s(max(1, failures), _RECONNECT_BASE_S, _RECONNECT_MAX_S, random.random)
        self._changed.clear()
        with contextlib.suppress(TimeoutError):  # a stop ends the wait
            await asyncio.wait_for(self._changed.wait(), delay_s)
