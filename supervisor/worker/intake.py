"""Reads new entries for one consumer, in batches, as much as pace and room allow.

The next batch is on the wire while the last one is handled. It never cancels a read: what was just
delivered would be stranded.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from supervisor.core.pace import Pace
from supervisor.shared_state import SlotField
from supervisor.worker.delivery import Copy, Delivery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from supervisor.broker.wire import BlockingReader
    from supervisor.core.options import Options
    from supervisor.worker.share import Share
    from supervisor.worker.surroundings import Surroundings

#: How often a burst looks for new entries while it waits for retries.
_BURST_POLL_S = 0.2
#: Acks that may wait for confirmation, in batches, before reading stops.
_BACKLOG_BATCHES = 8


class Intake:
    """The read loop of one (stream, group) in one worker."""

    def __init__(
        self,
        options: Options,
        around: Surroundings,
        reader: BlockingReader,
        share: Share,
        start: Callable[[list[Delivery]], None],
        sweep: Callable[[], Awaitable[None]],
    ) -> None:
        """`start` runs what was read; `sweep` reads the own pending list, when nothing else is on the wire."""
        self._options = options
        self._around = around
        self._reader = reader
        self._share = share
        self._executor = share.executor
        self._waiting = share.waiting
        self._make = Copy if share.copied else Delivery
        #: A stream of copies is read until it is empty, a burst reads what is there; else there is no end.
        self._ends = share.copied or around.burst
        self._start = start
        self._sweep = sweep
        self._pace = Pace(options.hold_ms / 1000, options.batch_size)
        self._changed = asyncio.Event()
        self.stopping = False
        self.paused = False
        self.sweep_wanted = False
        #: Some read was answered since this was last set to False.
        self.progressed = False
        #: In a burst: the last read found nothing.
        self._drained = False

    def progress(self) -> None:
        """There is room for more, or something else to look at."""
        self._changed.set()

    async def wait_out(self, delay_s: float) -> None:
        """Wait, unless it is time to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                while not self.stopping:
                    self._changed.clear()
                    await self._changed.wait()

    def lost(self) -> None:
        """What was read last may have been too much for one reply."""
        self._pace.lost()

    async def all_started(self) -> None:
        """Wait until nothing in hand waits for its turn, or it is time to stop."""
        while self._share.unstarted and not self.stopping:
            self._changed.clear()
            await self._changed.wait()

    async def idle(self) -> None:
        """Wait until nothing is in hand."""
        while self._executor.in_hand:
            self._changed.clear()
            await self._changed.wait()

    async def run(self) -> None:
        """Read until told to stop, or until nothing is left. Raises redis-py's errors and OSError."""
        make = self._make
        while True:
            if not self._reader.outstanding and not await self._next_read():
                return
            asked = self._pace.count
            entries = await self._reader.receive()
            self._around.shared.set(SlotField.FETCH_NS, time.monotonic_ns())
            self.progressed = True
            self._drained = self._around.burst and not entries
            if len(entries) < asked:
                self._pace.came_short(len(entries))
            if entries:
                await self._around.gate.passed()
                await self._read_ahead(len(entries))
                self._start([make(entry[0], entry[1]) for entry in entries])
            elif self._ends and await self._all_done():
                return

    async def _all_done(self) -> bool:
        """Nothing is left, nor was this consumer given anything, which in a burst nobody would look for again."""
        done = next(self._share.left(), None) is None
        if done and self._around.burst:
            await self._sweep()
            done = next(self._share.left(), None) is None
        return done

    async def _next_read(self) -> bool:
        """Put the next read on the wire as soon as it is allowed; False when it is time to stop."""
        while await self._room():
            if not self.sweep_wanted:
                await self._send_read(self._share.room)
                return True
            self.sweep_wanted = False
            await self._sweep()
        return False

    async def _read_ahead(self, coming: int) -> None:
        self._pace.observe(*self._executor.meter.take())
        if not (self._pace.read_ahead and self._may_read()):
            return
        # While no handler waits for anything, pace alone limits; else what would wait behind them does.
        room = self._share.room - coming if self._executor.running else self._options.batch_size
        if room > 0:
            await self._send_read(room)

    async def _room(self) -> bool:
        """Wait until a read is allowed; False when it is time to stop."""
        while not self.stopping:
            self._pace.observe(*self._executor.meter.take())
            free = self._may_read() and self._share.room > 0 and not self._share.unstarted
            if (free or self.sweep_wanted) and not self._drained:
                return True
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _BURST_POLL_S if self._drained else None)
            self._drained = False
        return False

    def _may_read(self) -> bool:
        options = self._options
        return not (
            self.stopping
            or self.paused
            or self.sweep_wanted
            or not self._around.gate.is_open
            or len(self._waiting) >= options.max_waiting
            or self._around.settler.backlog >= options.batch_size * _BACKLOG_BATCHES
        )

    async def _send_read(self, room: int) -> None:
        self._pace.count = max(1, min(self._pace.count, room))
        await self._reader.send(self._pace.count, block_ms=None if self._around.burst else self._options.block_ms)
