"""Runs all consumers of one worker: starts them, isolates suspects, drains.

A forked worker and the lifespan of a FastAPI app use it alike, so it knows nothing of signals, beats and exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.context import Context, enter
from supervisor.core.crash_charge import lone_suspect
from supervisor.errors import HandlerError
from supervisor.settings.paths import redis_url
from supervisor.shared_state import SlotField, WorkerState
from supervisor.worker.consumer import Consumer
from supervisor.worker.limited_consumer import LimitedConsumer
from supervisor.worker.process_calls import ProcessPool
from supervisor.worker.resources import Resources, SettleConnections
from supervisor.worker.run_control import RunControl
from supervisor.worker.source import source_key, sources_of
from supervisor.worker.thread_calls import HandlerThreads
from supervisor.worker.turn_settler import TurnSettler
from supervisor.worker.worker_lacks import WorkerLacks

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Sequence

    from supervisor.core.outcome import Crash
    from supervisor.handling.loader import HandlerSpec
    from supervisor.log import FaultLog
    from supervisor.messages import Message
    from supervisor.settings.model import Settings
    from supervisor.shared_state import SharedSlot
    from supervisor.worker.adopted import Adopted


class Runtime:
    """The consumers of one slot, with their shared connections, settlers and threads."""

    def __init__(  # noqa: PLR0913 - what a worker has, and an app has not
        self,
        settings: Settings,
        specs: Sequence[HandlerSpec],
        shared: SharedSlot,
        name: str,
        faults: FaultLog,
        *,
        burst: bool = False,
        crash: Crash | None = None,
        process_server: socket.socket | None = None,
    ) -> None:
        """Prepare the consumers called `name`; `crash` is how their predecessor ended.

        Without a `process_server`, handlers with `run_in = "process"` run in threads.

        Make it inside the running loop, after the fork. Raises HandlerError when shared memory has too few rows.
        """
        self._shared = shared
        self._control = RunControl()
        self.context = Context(settings.app, settings.state_dir.absolute(), name, redis_url(settings))
        streams = [spec.stream for spec in specs]
        self._connections = SettleConnections(settings, streams, name, shared, faults, self._control)
        self.settlers = self._connections.settlers
        self.lacks = WorkerLacks(shared, faults)
        self._threads = HandlerThreads(settings.consumer.threads, shared, self.lacks)
        size = settings.consumer.processes
        self._bug: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._processes = None if process_server is None else ProcessPool(process_server, size, self._bug)
        #: The number of suspects of all consumers: messages that may have been running when the predecessor crashed.
        self._suspects = 0
        #: Consumers with suspects that did not run yet.
        self._with_suspects = 0
        self._finished = False
        self._ready: Callable[[], None] | None = None
        #: The lifespan that the worker is in, if it is in one.
        self.phase: WorkerState | None = None
        #: The last report was that of a worker that waits for messages.
        self._quiet = False
        self._tasks: set[asyncio.Task[None]] = set()
        enter(self.context)
        _free_unused(shared, specs)
        resources = self._resources(settings, name, faults, burst=burst, crash=crash)
        self.consumers = [self._consumer(spec, resources) for spec in specs]

    def _resources(
        self, settings: Settings, name: str, faults: FaultLog, *, burst: bool, crash: Crash | None
    ) -> partial[Resources]:
        """Return what all consumers share, without the connection by which each settles."""
        return partial(
            Resources,
            redis_url=redis_url(settings),
            consumer=name,
            shared=self._shared,
            control=self._control,
            threads=self._threads,
            processes=self._processes,
            lacks=self.lacks,
            connect_timeout_s=settings.redis.connect_timeout_s,
            faults=faults,
            bug=self._bug,
            burst=burst,
            crash=crash,
        )

    async def run(self, ready: Callable[[], None]) -> None:
        """Work until `drain` is called, or in a burst until nothing is left.

        `ready` is called once, when everything is connected and adopted. Raises what a consumer's own code raises:
        that is a bug and must end the process, never leave it idle.
        """
        self._ready = ready
        try:
            await self._run_tasks()
        except BaseException:
            for consumer in self.consumers:
                consumer.note_failing()
            raise

    async def _run_tasks(self) -> None:
        owner = asyncio.current_task()
        async with asyncio.TaskGroup() as group:

            def start(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
                return group.create_task(self._uncancelled(work, owner), name=name)

            others = [group.create_task(self._until_bug())]
            others += [start(settler.run(), "settler") for settler in self.settlers]
            others += [start(consumer.circuit.run(), f"circuit {_name(consumer)}") for consumer in self.consumers]
            others += [start(consumer.run_retries(), f"retries {_name(consumer)}") for consumer in self.consumers]
            limited = [consumer for consumer in self.consumers if isinstance(consumer, LimitedConsumer)]
            others += [start(task, f"limits {_name(consumer)}") for consumer in limited for task in consumer.tasks()]
            async with asyncio.TaskGroup() as consumers:
                for consumer in self.consumers:
                    work = self._uncancelled(self._live(consumer), owner)
                    consumers.create_task(work, name=f"consumer {_name(consumer)}")
            await self._finish()
            self._finished = True
            for task in others:
                task.cancel()

    async def drain(self) -> None:
        """Take nothing new; `run` ends when what is in hand is done."""
        self._control.stop()
        self.report()  # a drain is shown at once, not with the next beat
        await asyncio.gather(*(consumer.stop() for consumer in self.consumers))

    async def close(self, successor: str | None = None, *, crashed: bool = False) -> None:
        """Cancel what still runs (it stays pending) and disconnect; with `successor`, hand retries over.

        `crashed`: `run` has failed, and what is marked as running may be the cause.
        """
        for consumer in self.consumers:
            await consumer.close(successor, crashed=crashed)
        await self._connections.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._processes is not None:
            self._processes.close()
        with contextlib.suppress(*REDIS_FAULTS):  # TLS waits for the other end, which may be away
            await self.context.aclose()

    def rescan(self) -> None:
        """Have every consumer read its own pending list again, since another process has put messages there."""
        self._control.rescan()
        self._unblock_all()

    def pause(self, paused: bool) -> None:
        """Start no message, or go on; what runs goes on."""
        if self._control.pause(paused):
            for consumer in self.consumers:
                consumer.executor.hold_and_release()
            self._unblock_all()
            self.report()

    @property
    def cut_off(self) -> bool:
        """Whether some consumer waits for Redis to answer."""
        return any(consumer.waits_for_redis for consumer in self.consumers)

    @property
    def due_s(self) -> float:
        """When what is under way must have ended, by `time.monotonic`; infinity when nothing has to."""
        return min((consumer.due_s for consumer in self.consumers), default=math.inf)

    def charge_overdue(self) -> None:
        """Charge the messages for which the arbiter kills this process now."""
        for consumer in self.consumers:
            consumer.executor.calls.charge_overdue()

    def report(self) -> None:
        """Write state and figures to shared memory."""
        self.lacks.look()
        was_quiet, self._quiet = self._quiet, self._is_quiet()
        if self._quiet and was_quiet:
            return  # all is as it was: with cold caches, each call in a beat of an idle worker takes microseconds
        refused = {source: error for settler in self.settlers for source, error in settler.refused().items()}
        for consumer in self.consumers:
            consumer.note_refusals(refused)
        in_flight = sum(consumer.executor.in_hand for consumer in self.consumers)
        self._shared.set(SlotField.IN_FLIGHT, in_flight)
        self._shared.set(SlotField.RUNNING, sum(consumer.executor.started for consumer in self.consumers))
        self._shared.set(SlotField.PAUSED, int(self._control.paused))  # after RUNNING, which can only fall from now on
        self._shared.set(SlotField.CUT_OFF, sum(consumer.cut_off.active for consumer in self.consumers))
        self._shared.set(SlotField.CIRCUITS_OPEN, sum(not consumer.circuit.closed for consumer in self.consumers))
        self._shared.set(SlotField.WAITING, sum(len(consumer.retries) for consumer in self.consumers))
        state = self._state(in_flight)
        if self._shared.get(SlotField.STATE) != state:
            self._shared.set(SlotField.STATE, state)
            self._shared.set(SlotField.STATE_SINCE_NS, time.monotonic_ns())

    def _is_quiet(self) -> bool:
        """Whether this worker waits for messages and has nothing else to report."""
        if self.phase is not None or self._control.stopping or self._control.paused:
            return False
        if any(settler.refused() for settler in self.settlers):
            return False
        return all(map(_waits_for_messages, self.consumers))

    def _state(self, in_flight: int) -> WorkerState:
        if self.phase is not None:
            return self.phase
        if self._control.stopping:
            return WorkerState.DRAIN
        if self.cut_off:
            return WorkerState.WAIT_REDIS
        if not self._all_opened:
            return WorkerState.ADOPT
        return WorkerState.WORK if in_flight else WorkerState.IDLE

    def _consumer(self, spec: HandlerSpec, resources: Callable[..., Resources]) -> Consumer:
        sources = sources_of(spec.stream, spec.group, self._shared)
        if sources is None:
            raise HandlerError(f"{spec.where}: more handlers than one pool can have; start a second pool")
        commands, settler = self._connections.of(spec.stream)
        own = resources(commands=commands, settler=settler)
        if spec.options.has_turns:
            own = replace(own, settler=TurnSettler(spec, settler, commands, own.consumer))
        return (LimitedConsumer if spec.options.is_limited else Consumer)(spec, own, sources)

    @property
    def _all_opened(self) -> bool:
        return all(consumer.opened for consumer in self.consumers)

    async def _live(self, consumer: Consumer) -> None:
        adopted = await consumer.open()
        # A retry of a plain function may have been going on in a thread, beyond its time.
        self._suspects += len(adopted.suspects) + (0 if consumer.spec.is_async else len(adopted.waiting))
        self._with_suspects += bool(adopted.suspects)
        self._note_adopted()
        if self._ready is not None and self._all_opened:
            self._ready()
            self._ready = None
        await consumer.start(adopted)
        if adopted.suspects:
            await self._run_suspects(consumer, adopted)
            if self._control.stopping:
                return  # what may not have run alone stays suspected
            self._with_suspects -= 1
            consumer.note_suspects_done()
            self._note_adopted()
        await consumer.run()

    async def _run_suspects(self, consumer: Consumer, adopted: Adopted) -> None:
        """Run the suspects one at a time with nothing else in hand, so that the next crash names its message."""
        async with self._control.isolation():
            # Entries that a blocked read received now would wait for the suspects; another worker can run them.
            await asyncio.gather(*(other.unblock() for other in self.consumers))
            await self._finish()
            for message in adopted.suspects:
                await self._control.until(lambda: self._control.stopping or not self._control.paused)
                if self._control.stopping:
                    return
                if not await self._charge_if_lone(consumer, message):
                    await consumer.run_isolated(message)

    def _note_adopted(self) -> None:
        """Note in shared memory what is known of the predecessor's marks: nothing is left of those without suspects."""
        if self._all_opened and not self._with_suspects:
            self._shared.set(SlotField.ISOLATING, 0)
        for consumer in self.consumers:
            if consumer.opened:
                consumer.executor.note_idle()

    async def _charge_if_lone(self, consumer: Consumer, message: Message) -> bool:
        """Charge the only message that was in hand at the crash; True when it became a dead letter."""
        charged = bool(self._shared.get(SlotField.ISOLATING))
        self._shared.set(SlotField.ISOLATING, 1)  # before the charge: the crash is charged once, whatever happens now
        if not lone_suspect(self._suspects, charged=charged, all_read=self._all_opened):
            return False
        try:
            return await consumer.charge(message)
        except REDIS_FAULTS:  # not charged this time; Redis is gone again, which others report
            return False

    async def _uncancelled(self, work: Coroutine[Any, Any, None], owner: asyncio.Task[Any] | None) -> None:
        """Run `work`; raise RuntimeError when a handler has cancelled this task.

        TaskGroup treats a cancelled task as finished, and the other tasks would go on without it.
        """
        try:
            await work
        except asyncio.CancelledError:
            if self._finished or owner is None or owner.cancelling():
                raise
            task = asyncio.current_task()
            raise RuntimeError(f"{task and task.get_name()} was cancelled, perhaps by a handler") from None

    async def _until_bug(self) -> None:
        await self._bug

    async def _finish(self) -> None:
        """Wait until nothing is in hand and all that was done is confirmed."""
        for consumer in self.consumers:
            await consumer.idle()
        for settler in self.settlers:
            await settler.flush()

    def _unblock_all(self) -> None:
        for consumer in self.consumers:
            task = asyncio.create_task(consumer.unblock())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def _free_unused(shared: SharedSlot, specs: Sequence[HandlerSpec]) -> None:
    """Free the rows of handlers that no longer exist."""
    both = [(spec, replays) for spec in specs for replays in (False, True)]
    shared.keep_consumers(
        [(source_key(spec.stream, spec.group, replays=replays), spec.group) for spec, replays in both]
    )


def _waits_for_messages(consumer: Consumer) -> bool:
    """Whether the consumer can read and settle, and no message is in hand or waits."""
    executor = consumer.executor
    has_messages = executor.in_hand or executor.calls.running or consumer.retries
    is_cut_off = not consumer.opened or consumer.waits_for_redis or consumer.cut_off.active
    return not (has_messages or is_cut_off) and consumer.circuit.closed


def _name(consumer: Consumer) -> str:
    return f"{consumer.spec.stream} {consumer.spec.group}"
