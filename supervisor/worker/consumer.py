"""The life of one consumer: one (stream, group) in one worker, from its connection to its end.

1. Adopts its own pending list when it starts and after every lost connection.
2. Lets its intake read, its executor run, its outcomes decide, and leaves the sending to the settler.

It never ends for a fault of Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from supervisor.broker.scripts import LEAVE_COPIES
from supervisor.broker.wire import BlockingReader
from supervisor.core.backoff import backoff_s
from supervisor.core.ids import parse_id
from supervisor.keys import isolated_key
from supervisor.shared_state import SlotField
from supervisor.worker.adopt import Adopted
from supervisor.worker.executor import Executor
from supervisor.worker.intake import Intake
from supervisor.worker.mark import Mark
from supervisor.worker.outcomes import Outcomes
from supervisor.worker.own import CopiesGoneError, OwnList
from supervisor.worker.settler import Keys
from supervisor.worker.share import Share
from supervisor.worker.waiting import Waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.handling.load import HandlerSpec
    from supervisor.shared_state import SharedConsumer
    from supervisor.worker.delivery import Delivery
    from supervisor.worker.surroundings import Surroundings

_RECONNECT_BASE_S = 0.05
_THREADS_LOOK_S = 0.01
#: Redis is asked for this often while it is away: it shall be back in use within a second or so.
_RECONNECT_MAX_S = 1.0
#: A read gives itself up when its time is over; one that has not after this long never will.
READ_SLACK_S = 5.0


class Consumer:
    """One (stream, group) in one worker."""

    def __init__(
        self, spec: HandlerSpec, around: Surroundings, row: SharedConsumer, beside: Consumer | None = None
    ) -> None:
        """`row` is where it marks what it has in hand.

        `beside` the handler's own consumer, and sharing all that it runs with, it reads the copies of messages
        that were replayed after their entry had been trimmed, as long as there are any.
        """
        self.spec = spec
        self.copied = beside is not None
        self.keys = Keys.of_copies(spec.stream, spec.group) if self.copied else Keys.of(spec.stream, spec.group)
        #: The consumer of copies beside this one, while there is one.
        self.copies: Consumer | None = None
        self.around = around
        self._row = row
        self._where = {"stream": self.keys.stream, "group": spec.group}
        self._reader = BlockingReader(
            around.redis_url, self.keys.stream, spec.group, around.name, connect_timeout_s=around.connect_timeout_s
        )
        self._mark = Mark(around.wire, around.settler, self.keys, around.name, around.shared, row)
        self._own = OwnList(spec, self.keys, around, row, self._mark)
        if beside is None:
            self.waiting = Waiting(self._start_unsorted)
            self._outcomes = Outcomes(spec, self.keys, around, self.waiting, self.progress)
            self.executor = Executor(spec, self._outcomes, around.threads, around.threads_max)
        else:
            self.waiting, self._outcomes, self.executor = beside.waiting, beside._outcomes, beside.executor
        self._share = Share(self.executor, self.waiting, copied=self.copied)
        self.intake = Intake(spec.options, around, self._reader, self._share, self._start, self._adopt_while_alive)
        #: Redis does not answer: it waits and tries again.
        self.cut_off = False
        #: What it had in hand was cancelled, not done.
        self._left = False

    def progress(self) -> None:
        """There is room for more, or something else to look at."""
        if self.opened and not self._left and not self.around.shared.get(SlotField.ISOLATING) and not self._has_any():
            self._row.set_started(0, 0)  # a process that ends now was not ended by a message
        self.intake.progress()
        if self.copies is not None:
            self.copies.progress()

    @property
    def opened(self) -> bool:
        """Connected, its group made and its pending list read at least once."""
        return self._own.opened

    @property
    def due_s(self) -> float:
        """When something of it must have come to an end, by `time.monotonic`; infinity while nothing has to."""
        reading_s = self._reader.due_s + READ_SLACK_S if self._reader.outstanding and not self.cut_off else math.inf
        return min(reading_s, self.executor.due_s)

    # From open to close

    async def open(self) -> Adopted:
        """Connect, make the group, and find what a predecessor left. Waits while Redis is away.

        Raises CopiesGoneError, of copies only; so does `run`.
        """
        failures = 0
        while True:
            try:
                await self._reader.connect()
                await self._own.make_group()
                adopted = await self._sweep()
            except (RedisError, OSError, TimeoutError) as error:
                failures += 1
                await self._wait_out(error, failures)
                if self.intake.stopping:
                    return Adopted()
            else:
                self.cut_off = False
                self.around.faults.resolved("can't read", **self._where)
                return adopted

    async def start(self, adopted: Adopted) -> None:
        """Run what was found, but for the suspects; retries wait for their time."""
        await self.around.gate.passed()
        for delivery, delay_s in adopted.waiting:
            self.waiting.add(delivery, delay_s)
        # Batch by batch: what is not started is no suspect at the next crash, and stays pending at a drain.
        plain, size = _in_order(adopted.plain), self.spec.options.batch_size
        for at in range(0, len(plain), size):
            await self.intake.all_started()
            await self.around.gate.passed()
            if self.intake.stopping:
                return
            self._start(plain[at : at + size])

    async def charge(self, delivery: Delivery) -> bool:
        """Count a crash against a suspect; True when it was one too many and it became a dead letter."""
        return await self._own.charge(delivery, self._outcomes)

    async def run_alone(self, delivery: Delivery) -> None:
        """Run a suspect with nothing else in hand, marked, and see it settled.

        A thread that is out of time goes on, and the worker is ended for it: the mark stays until it is over.
        """
        delivery.recorded = True
        await self._mark.set(delivery.id)
        self.executor.submit([delivery])
        await self.finish()
        await self._threads_over()
        self._mark.over()
        await self.around.settler.flush()

    async def _threads_over(self) -> None:
        while not self.intake.stopping:
            if not self.executor.calls.running:
                return
            await asyncio.sleep(_THREADS_LOOK_S)

    async def run(self) -> None:
        """Read until told to stop, or in a burst until nothing is left."""
        failures = 0
        while not self.intake.stopping:
            try:
                await self.intake.run()
                return
            except (RedisError, OSError, TimeoutError) as error:
                failures = 1 if self.intake.progressed else failures + 1
                self.intake.progressed = False
                self.intake.lost()
                await self._wait_out(error, failures)
            if not self.intake.stopping:
                # Known ids are skipped, so what is still in hand here is not run twice.
                await self._adopt(await self.open())
                self._sweep_again()

    async def finish(self) -> None:
        """Wait until nothing is in hand and all that was done is with the settler, also of this turn of the loop."""
        await self.intake.idle()
        self._outcomes.flush_acks()

    async def stop_reading(self) -> None:
        """Take nothing new: a blocked read is ended at the server, and what it brought is still run.

        What was read ahead is given back when it is not done within the time that may be read ahead.
        """
        self.intake.stopping = True
        self.waiting.hold()
        self.progress()
        asyncio.get_running_loop().call_later(self.spec.options.hold_ms / 1000, self.executor.give_back)
        await self.unblock()

    async def unblock(self) -> None:
        """End a blocked read now, without losing what it brings. One that is overdue has nobody who reads it."""
        while self._reader.outstanding and not self.cut_off and time.monotonic() < self._reader.due_s:
            try:
                await self.around.wire.unblock(self._reader)
            except (RedisError, OSError, TimeoutError):
                return
            # Again, if the read had not reached the server yet.
            await asyncio.sleep(0.01)
            if not (self.intake.stopping or self.intake.paused or self.intake.sweep_wanted):
                return

    async def leave(self, heir: str | None) -> None:
        """Close; with `heir`, hand what is still pending to that consumer and delete this one."""
        self.waiting.hold()
        await self._reader.close()
        if not self._has_any():
            self._row.set_started(0, 0)  # whatever is pending now was not running: no successor needs to suspect it
        self._left = True
        if not self.copied:
            await self.executor.abort()
        if self._row.isolated() is not None:
            await self._mark.clear()  # it was ended on purpose
        if heir is not None:
            try:
                await self._own.hand_over(heir)
            except (RedisError, OSError) as error:  # a keeper does it when Redis is back
                self.around.faults.redis("can't hand over what is pending", error)
        elif self.copied and not self.cut_off:
            with contextlib.suppress(RedisError, OSError):  # it stays a member; the next incarnation leaves then
                await self.leave_copies()

    async def leave_copies(self) -> str:
        """Close, and be no member of the copies' group any more; what LEAVE_COPIES says of it.

        Raises redis-py's errors.
        """
        await self._reader.close()
        self.around.faults.resolved("can't read", **self._where)
        named = [
            self.keys.stream,
            self.keys.retries,
            self.keys.crashes,
            isolated_key(self.keys.stream, self.keys.group),
        ]
        said: bytes = await self.around.wire.script(LEAVE_COPIES, named, self.keys.group, self.around.name)
        return said.decode()

    def _has_any(self) -> bool:
        return next(self._share.in_hand(), None) is not None

    def free_row(self) -> None:
        """It marks nothing any more."""
        self._row.free()

    # What is found pending

    def _start(self, deliveries: Sequence[Delivery]) -> None:
        """In the order of their ids. One mark a batch: at worst, a crash has a few more of them run one at a time."""
        if deliveries:
            self._row.set_started(*max(parse_id(deliveries[-1].id), self._row.started()))
            self.executor.submit(deliveries)

    def _start_unsorted(self, deliveries: Sequence[Delivery]) -> None:
        """Copies go to the consumer that marks them; without it their stream is gone, and they with it."""
        self._start(_in_order([delivery for delivery in deliveries if not delivery.copied]))
        if self.copies is not None:
            self.copies._start(_in_order([delivery for delivery in deliveries if delivery.copied]))

    async def _sweep(self) -> Adopted:
        known = {delivery.id for delivery in self._share.left()} | self.around.settler.ids(self.keys)
        if not self.copied:
            known.update(self._outcomes.acks)
        return await self._own.sweep(self._reader, known, self._outcomes)

    async def _adopt(self, adopted: Adopted) -> None:
        """Run what was found while this process lives on: none of it can have ended a process."""
        adopted.plain += adopted.suspects
        await self.start(adopted)

    async def _adopt_while_alive(self) -> None:
        await self._adopt(await self._sweep())

    def _sweep_again(self) -> None:
        """The server may not have noticed the lost connection yet, and still hand an entry to its blocked read."""

        def later() -> None:
            self.intake.sweep_wanted = True
            self.progress()

        blocked_s = self.spec.options.block_ms / 1000
        asyncio.get_running_loop().call_later(blocked_s + READ_SLACK_S, later)

    async def _wait_out(self, error: BaseException, failures: int) -> None:
        await self._reader.close()
        if self.copied and str(error).startswith("NOGROUP"):
            raise CopiesGoneError from None
        if self.intake.stopping:
            return
        self.cut_off = True
        self.around.faults.redis("can't read", error, **self._where)
        self.around.shared.add(SlotField.RECONNECTS, 1)
        await self.intake.wait_out(backoff_s(max(1, failures), _RECONNECT_BASE_S, _RECONNECT_MAX_S, random.random))


def _in_order(deliveries: Sequence[Delivery]) -> list[Delivery]:
    return sorted(deliveries, key=lambda delivery: parse_id(delivery.id))
