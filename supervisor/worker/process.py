"""The body of a forked worker: its event loop, signals, heartbeat and exit code.

`run` is called after the fork, in the new process, and returns the code to exit with. `worker.runtime` handles the
messages.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import uvloop

from supervisor.core.options import PROCESS
from supervisor.errors import EXIT_FAILED, EXIT_OK, WORKER_CONFIG, HandlerError
from supervisor.keys import consumer_name, pool_id
from supervisor.log import FaultLog, log_records, lower_log_level, outage_turn, worker_logger
from supervisor.shared_state import HeaderField, SlotField, WorkerState
from supervisor.worker.handler_forks import begin_process
from supervisor.worker.lifespans import LifespanFailedError, WorkerLifespans
from supervisor.worker.process_server import start_server
from supervisor.worker.runner import message_fields
from supervisor.worker.runtime import Runtime

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from supervisor.core.outcome import Crash
    from supervisor.handling.loader import HandlerSpec
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
    """Work until SIGTERM or a drain, or in a burst until nothing is left; return the exit code.

    `crash` is how the slot's last process ended.
    """
    name = consumer_name(pool_id(settings.pool.host, settings.pool.name), slot)
    log_records(settings, worker_logger(settings, slot, worker=name), message_fields)
    lower_log_level(settings)
    in_process = any(spec.options.run_in == PROCESS for spec in specs)
    process_server = start_server(settings, specs, name) if in_process else None
    begin_process()
    gc.enable()
    gc.set_threshold(_GC_THRESHOLD, 10, 10)
    try:
        code = uvloop.run(_main(settings, specs, shared, slot, burst, crash, process_server))
    except HandlerError as error:
        worker_logger(settings, slot).error("worker can't start", error=str(error))
        code = WORKER_CONFIG
    except LifespanFailedError as error:
        worker_logger(settings, slot).error("worker lifespan failed", error=str(error), exc_info=error.__cause__)
        code = EXIT_FAILED
    except asyncio.CancelledError:
        hint = "cancel only tasks that the handler has started; asyncio.all_tasks() has the worker's own, too"
        worker_logger(settings, slot).error("worker cancelled by a handler", hint=hint)
        code = EXIT_FAILED
    shared.slot(slot).set(SlotField.EXIT_CODE, 1 + code)
    return code


async def _main(
    settings: Settings,
    specs: Sequence[HandlerSpec],
    shared: SharedState,
    slot: int,
    burst: bool,
    crash: Crash | None,
    process_server: socket.socket | None = None,
) -> int:
    pool = pool_id(settings.pool.host, settings.pool.name)
    fields = shared.slot(slot)
    faults = FaultLog(worker_logger(settings, slot), outage_turn(shared))
    name = consumer_name(pool, slot)
    runtime = Runtime(settings, specs, fields, name, faults, burst=burst, crash=crash, process_server=process_server)
    beat = Beat(shared, slot, runtime)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, beat.drain)
    handover_to = fields.get(SlotField.HANDOVER_TO)
    try:
        if handover_to:
            beat()
        else:
            lifespans = WorkerLifespans(specs)
            if await _enter(lifespans, runtime, beat):
                beat()
                await runtime.run(beat.ready)
                await _leave(lifespans, runtime, beat)
            handover_to = fields.get(SlotField.HANDOVER_TO)
        await runtime.close(consumer_name(pool, handover_to - 1) if handover_to else None)
    finally:
        beat.stop()  # a handler that can't be cancelled may keep the process: the arbiter ends it then
    return EXIT_OK


async def _enter(lifespans: WorkerLifespans, runtime: Runtime, beat: Beat) -> bool:
    """Enter the lifespans; False when the worker was asked to stop meanwhile."""
    if not lifespans:
        return True
    runtime.phase = WorkerState.LIFESPAN_START
    runtime.report()
    beat.entering = asyncio.current_task()
    try:
        runtime.context.state = await lifespans.enter()
    except asyncio.CancelledError:
        if not beat.draining:
            raise
        return False
    finally:
        beat.entering = runtime.phase = None
        runtime.report()  # a process that was asked to stop may end before the next beat
    return True


async def _leave(lifespans: WorkerLifespans, runtime: Runtime, beat: Beat) -> None:
    """Leave the lifespans, after the last message was settled."""
    if lifespans:
        beat.stop()
        runtime.phase = WorkerState.LIFESPAN_END
        runtime.report()
        await lifespans.leave()


class Beat:
    """Writes the worker's heartbeat, and obeys what the arbiter writes to shared memory."""

    def __init__(self, shared: SharedState, slot: int, runtime: Runtime) -> None:
        """Beat for `slot`, beginning with the first call."""
        self._shared = shared
        self._fields = shared.slot(slot)
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._parent = os.getppid()
        self._rescans = self._fields.get(SlotField.RESCAN_PENDING)
        self._due_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._draining: asyncio.Task[None] | None = None
        #: The task that enters the project's lifespans, while it does.
        self.entering: asyncio.Task[Any] | None = None

    def __call__(self) -> None:
        """Beat once. The event loop itself does it, so a blocked loop shows."""
        if os.getppid() != self._parent:  # for systems that send no signal when the parent dies
            os._exit(EXIT_OK)
        now_s = self._loop.time()
        lag_ns = int((now_s - self._due_s) * 1e9)
        if lag_ns > self._fields.get(SlotField.LOOP_LAG_NS_MAX):
            self._fields.set(SlotField.LOOP_LAG_NS_MAX, lag_ns)
        self._fields.set(SlotField.BEAT_NS, time.monotonic_ns())
        self._fields.set(SlotField.DEADLINE_NS, self._deadline_ns(late=lag_ns > BEAT_S * 1e9))
        self._runtime.report()
        self._obey()
        self._due_s = now_s + BEAT_S
        self._timer = self._loop.call_later(BEAT_S, self)

    def _deadline_ns(self, *, late: bool) -> int:
        """Return the deadline of what is under way; 0: none.

        It is not before the next beat, unless it has passed: until then, what is due may be done. A loop that was held
        up has had no turn to do it yet.
        """
        due_s, now_s = self._runtime.due_s, time.monotonic()
        if due_s == math.inf:
            return 0
        if due_s <= now_s and not late:
            self._runtime.charge_overdue()
        return int((due_s if due_s <= now_s and not late else max(due_s, now_s + 2 * BEAT_S)) * 1e9)

    def ready(self) -> None:
        """Note that everything is connected and adopted."""
        if not self._fields.get(SlotField.READY_NS):
            self._fields.set(SlotField.READY_NS, time.monotonic_ns())

    @property
    def draining(self) -> bool:
        """Whether the worker was asked to stop, though its runtime may not know it yet."""
        return self._draining is not None

    def drain(self) -> None:
        """Stop taking messages; the worker ends when what is in hand is done."""
        if self._draining is None:
            self._draining = self._loop.create_task(self._runtime.drain())
            if self.entering is not None:  # nothing is in hand
                self.entering.cancel()

    def stop(self) -> None:
        """End the beats."""
        if self._timer is not None:
            self._timer.cancel()

    def _obey(self) -> None:
        if self._runtime.cut_off:
            # Up, and waiting for Redis: that must not count as a worker that can't boot.
            self.ready()
        rescans = self._fields.get(SlotField.RESCAN_PENDING)
        if rescans != self._rescans:
            self._rescans = rescans
            self._runtime.rescan()
        self._runtime.pause(bool(self._shared.get(HeaderField.PAUSED)))
        if self._shared.get(HeaderField.SHUTDOWN):
            self.drain()
