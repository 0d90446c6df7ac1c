"""The body of a forked worker: its loop, its signals, its beat and its exit code.

It is entered after the fork, in a process of its own, and returns the code to exit with. What it
does with messages is the business of `worker.runtime`.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import uvloop

from supervisor.errors import EXIT_OK, WORKER_CONFIG, HandlerError
from supervisor.keys import consumer_name, pool_id
from supervisor.log import FaultLog, worker_logger
from supervisor.shared_state import HeaderField, SlotField
from supervisor.worker.runner import begin_process
from supervisor.worker.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.core.outcome import Crash
    from supervisor.handling.load import HandlerSpec
    from supervisor.settings.model import Settings
    from supervisor.shared_state import SharedState

#: A batch makes hundreds of short-lived objects without cycles: young collections at Python's 700 find nothing.
_GC_THRESHOLD = 20_000
#: How often a worker shows that its loop turns; a tenth of the default limit.
BEAT_S = 0.5


def run(
    settings: Settings,
    specs: Sequence[HandlerSpec],
    shared: SharedState,
    slot: int,
    *,
    burst: bool = False,
    crash: Crash | None = None,
) -> int:
    """Work until told to drain, or in a burst until nothing is left; the exit code. `crash`: the predecessor's."""
    # A `print` shall be seen, and must not be lost with the process.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    begin_process()
    gc.enable()
    gc.set_threshold(_GC_THRESHOLD, 10, 10)
    try:
        code = uvloop.run(_main(settings, specs, shared, slot, burst, crash))
    except HandlerError as error:
        worker_logger(settings, slot).error("worker can't start", error=str(error))
        code = WORKER_CONFIG
    shared.slot(slot).set(SlotField.EXIT_CODE, 1 + code)
    return code


async def _main(
    settings: Settings, specs: Sequence[HandlerSpec], shared: SharedState, slot: int, burst: bool, crash: Crash | None
) -> int:
    pool = pool_id(settings.pool.host, settings.pool.name)
    words = shared.slot(slot)
    faults = FaultLog(worker_logger(settings, slot))
    runtime = Runtime(settings, specs, words, consumer_name(pool, slot), faults, burst=burst, crash=crash)
    beat = Beat(shared, slot, runtime)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, beat.drain)
    beat()
    if not words.get(SlotField.HANDOVER_TO):
        await runtime.run(beat.ready)
    leave = words.get(SlotField.HANDOVER_TO)
    await runtime.close(consumer_name(pool, leave - 1) if leave else None)
    beat.stop()
    return EXIT_OK


class Beat:
    """The worker's sign of life, and its look at what the arbiter wants."""

    def __init__(self, shared: SharedState, slot: int, runtime: Runtime) -> None:
        """Beats for `slot`; starts with the first call."""
        self._shared = shared
        self._words = shared.slot(slot)
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._parent = os.getppid()
        self._rescans = self._words.get(SlotField.RESCAN_PENDING)
        self._due_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._draining: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        """One beat: written by the loop itself, so a blocked loop shows."""
        if os.getppid() != self._parent:  # where no signal tells of the arbiter's death
            os._exit(EXIT_OK)
        now_s = self._loop.time()
        lag_ns = int((now_s - self._due_s) * 1e9)
        if lag_ns > self._words.get(SlotField.LOOP_LAG_NS_MAX):
            self._words.set(SlotField.LOOP_LAG_NS_MAX, lag_ns)
        self._words.set(SlotField.BEAT_NS, time.monotonic_ns())
        self._words.set(SlotField.DEADLINE_NS, self._deadline_ns())
        self._runtime.report()
        self._obey()
        self._due_s = now_s + BEAT_S
        self._timer = self._loop.call_later(BEAT_S, self)

    def _deadline_ns(self) -> int:
        """Not before the next beat, unless it has passed: until then what is due may be long done."""
        due_s, now_s = self._runtime.due_s, time.monotonic()
        if due_s == math.inf:
            return 0
        return int((due_s if due_s <= now_s else max(due_s, now_s + 2 * BEAT_S)) * 1e9)

    def ready(self) -> None:
        """Everything is connected and adopted."""
        if not self._words.get(SlotField.READY_NS):
            self._words.set(SlotField.READY_NS, time.monotonic_ns())

    def drain(self) -> None:
        """Stop taking messages; the worker ends when what is in hand is done."""
        if self._draining is None:
            self._draining = self._loop.create_task(self._runtime.drain())

    def stop(self) -> None:
        """No more beats."""
        if self._timer is not None:
            self._timer.cancel()

    def _obey(self) -> None:
        if self._runtime.cut_off:
            # Up, and waiting for Redis: that must not count as a worker that can't boot.
            self.ready()
        rescans = self._words.get(SlotField.RESCAN_PENDING)
        if rescans != self._rescans:
            self._rescans = rescans
            self._runtime.rescan()
        self._runtime.pause(bool(self._shared.get(HeaderField.PAUSED)))
        if self._shared.get(HeaderField.SHUTDOWN):
            self.drain()
