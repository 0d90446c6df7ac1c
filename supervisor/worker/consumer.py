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
import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from supervisor.board import Word
from supervisor.broker.wire import BlockingReader
from supervisor.core.backoff import backoff_s
from supervisor.core.faults import Fault, fault_of
from supervisor.core.ids import parse_id
from supervisor.core.pace import Pace
from supervisor.worker.adopt import Adopted
from supervisor.worker.delivery import Delivery
from supervisor.worker.executor import Executor
from supervisor.worker.outcomes import Outcomes
from supervisor.worker.own import OwnList
from supervisor.worker.settler import Keys
from supervisor.worker.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor as Threads

    from supervisor.board import RowBoard, SlotBoard
    from supervisor.broker.wire import Wire
    from supervisor.handling.load import HandlerSpec
    from supervisor.worker.settler import Settler

_RECONNECT_BASE_S = 0.05
_RECONNECT_MAX_S = 2.0
#: How often a burst looks for new entries while it waits for retries.
_BURST_POLL_S = 0.2
#: Acks that may wait for confirmation, in batches, before reading stops.
_BACKLOG_BATCHES = 8
#: A read gives itself up when its time is over; one that has not after this long never will.
READ_SLACK_S = 5.0


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
        keys = Keys.of(spec.stream, spec.group)
        self._reader = BlockingReader(
            around.redis_url, spec.stream, spec.group, around.name, connect_timeout_s=around.connect_timeout_s
        )
        self._own = OwnList(spec, keys, around.wire, around.settler, around.board, row)
        self.waiting = Waiting(self._deliver)
        self._outcomes = Outcomes(spec, keys, around.settler, self.waiting, around.board, around.name, self.progress)
        self.executor = Executor(spec, self._outcomes, around.threads, around.threads_max)
        self._pace = Pace(options.hold_ms / 1000, options.batch_size)
        self._changed = asyncio.Event()
        self.stopping = False
        self.paused = False
        self.sweep_wanted = False
        #: Redis does not answer: it waits and tries again.
        self.cut_off = False
        self._progressed = False
        #: In a burst: the last read found nothing.
        self._drained = False

    def progress(self) -> None:
        """There is room for more, or something else to look at."""
        self._changed.set()

    @property
    def opened(self) -> bool:
        """Connected, its group made and its pending list read at least once."""
        return self._own.opened

    @property
    def due_s(self) -> float:
        """When something of it must have come to an end, by `time.monotonic`; infinity while nothing has to."""
        reading_s = self._reader.due_s + READ_SLACK_S if self._reader.outstanding and not self.cut_off else math.inf
        return min(reading_s, self.executor.due_s)

    def _deliver(self, deliveries: list[Delivery]) -> None:
        self.executor.submit(deliveries)

    # The life of a consumer.

    async def open(self) -> Adopted:
        """Connect, make the group, and find what a predecessor left. Waits while Redis is away."""
        failures = 0
        while True:
            try:
                await self._reader.connect()
                await self._own.make_group()
                adopted = await self._sweep()
            except (RedisError, OSError, TimeoutError) as error:
                failures += 1
                await self._wait_out(error, failures)
                if self.stopping:
                    return Adopted()
            else:
                self.cut_off = False
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
                self._adopt(await self.open())

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
        """Close; with `heir`, hand what is still pending to that consumer and delete this one."""
        self.waiting.stop()
        await self._reader.close()
        await self.executor.abort()
        if heir is not None:
            await self._own.hand_over(self._around.name, heir)

    # Reading.

    async def _read(self) -> None:
        while True:
            if not self._reader.outstanding and not await self._next_read():
                return
            asked = self._pace.count
            entries = await self._reader.receive()
            self._around.board.set(Word.FETCH_NS, time.monotonic_ns())
            self._progressed = True
            self._drained = self._around.burst and not entries
            if len(entries) < asked:
                self._pace.came_short(len(entries))
            if entries:
                await self._read_ahead(len(entries))
                self._run_new([Delivery(entry[0], entry[1]) for entry in entries])
            elif self._drained and self._nothing_left():
                return

    async def _next_read(self) -> bool:
        """Put the next read on the wire as soon as it is allowed; False when it is time to stop."""
        while await self._room():
            if not self.sweep_wanted:
                await self._send_read(self.executor.room)
                return True
            self.sweep_wanted = False
            self._adopt(await self._sweep())
        return False

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
            free = self._may_read() and self.executor.room > 0 and not self.executor.unstarted
            if (free or self.sweep_wanted) and not self._drained:
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

    async def _send_read(self, room: int) -> None:
        self._pace.count = max(1, min(self._pace.count, room))
        await self._reader.send(self._pace.count, block_ms=None if self._around.burst else self.spec.options.block_ms)

    def _nothing_left(self) -> bool:
        return not self.executor.in_hand and not len(self.waiting)

    def _run_new(self, deliveries: list[Delivery]) -> None:
        if not deliveries:
            return
        # One mark a batch: at worst, a crash has a few more of them run one at a time.
        last = max(parse_id(deliveries[-1].id), self._row.started())
        self._row.set_started(*last)
        self.executor.submit(deliveries)

    # Adoption and faults.

    async def _sweep(self) -> Adopted:
        known = {*self.executor.ids(), *self.waiting.ids(), *self._outcomes.acks} | self._around.settler.ids()
        return await self._own.sweep(self._reader, known, self._outcomes)

    def _adopt(self, adopted: Adopted) -> None:
        """Run what was found while this process lives on: none of it can have ended a process."""
        adopted.plain += adopted.suspects
        self.start(adopted)

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
