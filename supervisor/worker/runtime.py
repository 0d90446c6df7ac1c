"""All consumers of one worker: has each live its life, runs suspects alone, drains.

It is the same in a forked worker and in a FastAPI app's lifespan; signals, beats and exit codes are
the process's business, not its own.
"""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from supervisor.context import Context, enter
from supervisor.core.blame import lone_suspect
from supervisor.errors import HandlerError
from supervisor.keys import replay_key
from supervisor.settings.paths import redis_url
from supervisor.shared_state import SlotField, WorkerState
from supervisor.worker.consumer import Consumer
from supervisor.worker.copies import Copies
from supervisor.worker.gate import Gate
from supervisor.worker.lines import Lines
from supervisor.worker.surroundings import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from supervisor.core.outcome import Crash
    from supervisor.handling.load import HandlerSpec
    from supervisor.log import FaultLog
    from supervisor.settings.model import Settings
    from supervisor.shared_state import SharedConsumer, SharedSlot
    from supervisor.worker.adopt import Adopted
    from supervisor.worker.delivery import Delivery


class Runtime:
    """The consumers of one slot, with their shared connections, settlers and threads."""

    def __init__(
        self,
        settings: Settings,
        specs: Sequence[HandlerSpec],
        shared: SharedSlot,
        name: str,
        faults: FaultLog,
        *,
        burst: bool = False,
        crash: Crash | None = None,
    ) -> None:
        """`name` is the consumer's, `crash` its predecessor's. Make it inside the running loop, after the fork."""
        url = redis_url(settings)
        self._shared = shared
        self._context = Context(settings.app, settings.state_dir.absolute(), name, url)
        self._lines = Lines(settings, (spec.stream for spec in specs), name, shared, faults)
        self.settlers = self._lines.settlers
        self._threads = ThreadPoolExecutor(settings.consumer.threads, thread_name_prefix="handler")
        self._gate = Gate()
        around = partial(
            Surroundings,
            redis_url=url,
            name=name,
            shared=shared,
            gate=self._gate,
            threads=self._threads,
            threads_max=settings.consumer.threads,
            connect_timeout_s=settings.redis.connect_timeout_s,
            faults=faults,
            broke=self._broke,
            burst=burst,
            crash=crash,
        )
        #: How many messages a predecessor may have crashed with, over all consumers; whether it is known already which.
        self._suspects = 0
        self._charged = bool(shared.get(SlotField.ISOLATING))
        #: Consumers whose suspects have not all run.
        self._suspicious = 0
        self._bug: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        enter(self._context)
        pairs = [(spec.stream, spec.group) for spec in specs]
        shared.keep_consumers([*pairs, *((replay_key(*pair), pair[1]) for pair in pairs)])
        self.consumers = [self._consumer(spec, around) for spec in specs]
        self._copies = Copies(self.consumers, burst=burst)
        for settler in self.settlers:
            settler.progress = self._progress
        self.stopping = False
        self._finished = False
        self._ready: Callable[[], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Work until `drain` is called, or in a burst until nothing is left.

        `ready` is called once, when everything is connected and adopted. Raises what a consumer's
        own code raises: that is a bug and must end the process, never leave it idle.
        """
        owner = asyncio.current_task()
        async with asyncio.TaskGroup() as group:
            others = [group.create_task(self._until_bug())]
            for settler in self.settlers:
                others.append(group.create_task(self._unbroken(settler.run(), owner), name="settler"))
            async with asyncio.TaskGroup() as consumers:

                def start(work: Coroutine[Any, Any, None], name: str) -> None:
                    consumers.create_task(self._unbroken(work, owner), name=name)

                self._ready = ready
                for consumer in self.consumers:
                    start(self._live(consumer), f"consumer {consumer.spec.stream} {consumer.spec.group}")
                start(self._copies.run(self._live, start, self._note_opened), "copies")
            await self._finish()
            self._finished = True
            for task in others:
                task.cancel()

    async def drain(self) -> None:
        """Take nothing new; `run` ends when what is in hand is done."""
        self.stopping = True
        self._copies.stop()
        self.report()  # what a drain waits for is told soon, and the last beat may be half a second old
        await asyncio.gather(*(consumer.stop_reading() for consumer in self._all()))

    async def close(self, heir: str | None = None) -> None:
        """Cancel what still runs (it stays pending) and disconnect; with `heir`, hand retries over."""
        for consumer in reversed(self._all()):  # copies first: what runs is theirs too, and ended with the others
            await consumer.leave(heir)
        if heir is not None:
            await self._copies.hand_over(heir)
        await self._lines.close()
        await self._context.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def sweep(self) -> None:
        """Have every consumer read its own pending list again: somebody handed it messages, or has replayed some."""
        self._copies.look_again()
        for consumer in self._all():
            consumer.intake.sweep_wanted = True
            self._soon(consumer)

    def pause(self, paused: bool) -> None:
        """Stop or go on reading; what is in hand goes on."""
        for consumer in self._all():
            if consumer.intake.paused != paused:
                consumer.intake.paused = paused
                self._soon(consumer)

    @property
    def cut_off(self) -> bool:
        """Some consumer waits for Redis to answer."""
        return any(consumer.cut_off for consumer in self._all())

    @property
    def due_s(self) -> float:
        """When what is under way must have come to an end, by `time.monotonic`; infinity while nothing has to."""
        return min((consumer.due_s for consumer in self._all()), default=math.inf)

    def report(self) -> None:
        """Write state and figures to shared memory."""
        in_flight = sum(consumer.executor.in_hand for consumer in self.consumers)
        self._shared.set(SlotField.IN_FLIGHT, in_flight)
        self._shared.set(SlotField.WAITING, sum(len(consumer.waiting) for consumer in self.consumers))
        state = self._state(in_flight)
        if self._shared.get(SlotField.STATE) != state:
            self._shared.set(SlotField.STATE, state)
            self._shared.set(SlotField.STATE_SINCE_NS, time.monotonic_ns())

    def _state(self, in_flight: int) -> WorkerState:
        if self.stopping:
            return WorkerState.DRAIN
        if self.cut_off:
            return WorkerState.WAIT_REDIS
        if not all(consumer.opened for consumer in self.consumers):
            return WorkerState.ADOPT
        return WorkerState.WORK if in_flight else WorkerState.IDLE

    def _consumer(self, spec: HandlerSpec, around: Callable[..., Surroundings]) -> Consumer:
        line = self._lines.of(spec.stream)
        return Consumer(spec, around(wire=line.wire, settler=line.settler), _row(self._shared, spec))

    def _all(self) -> list[Consumer]:
        return [*self.consumers, *self._copies.consumers]

    def _all_opened(self) -> bool:
        return self._copies.looked and all(consumer.opened for consumer in self._all())

    def _note_opened(self) -> None:
        if self._ready is not None and self._all_opened():
            self._ready()
            self._ready = None

    async def _live(self, consumer: Consumer) -> None:
        adopted = await consumer.open()
        # A retry of a plain function may have been going on in a thread, beyond its time.
        self._suspects += len(adopted.suspects) + (0 if consumer.spec.is_async else len(adopted.waiting))
        self._charged |= adopted.charged
        self._suspect(bool(adopted.suspects))
        consumer.progress()
        self._note_opened()
        await consumer.start(adopted)
        if adopted.suspects:
            await self._run_suspects(consumer, adopted)
        await consumer.run()

    async def _run_suspects(self, consumer: Consumer, adopted: Adopted) -> None:
        """One at a time with nothing else in hand, after all that was only read: the next crash names its message."""
        async with self._gate.closed():
            for other in self.consumers:
                other.waiting.hold()
            # What a blocked read would bring now had to wait here, while another worker could run it.
            await asyncio.gather(*(other.unblock() for other in self._all()))
            await self._finish()
            for delivery in adopted.suspects:
                if self.stopping:
                    return
                if not (adopted.crashed and await self._charge_if_lone(consumer, delivery)):
                    await consumer.run_alone(delivery)
            if not self.stopping:
                for other in self.consumers:
                    other.waiting.release()
        self._suspect(-1)
        self._progress()

    def _suspect(self, more: int) -> None:
        """So many more consumers have suspects that did not run yet; shared memory knows whether there are any."""
        self._suspicious += more
        if self._suspicious or self._all_opened():
            self._shared.set(SlotField.ISOLATING, int(self._suspicious > 0))

    async def _charge_if_lone(self, consumer: Consumer, delivery: Delivery) -> bool:
        """Nothing else was in hand at the crash, so it is known already which message it was."""
        if not lone_suspect(self._suspects, charged=self._charged, all_read=self._all_opened()):
            return False
        try:
            return await consumer.charge(delivery)
        except (RedisError, OSError):  # not charged this time; Redis is gone again, of which others tell
            return False

    async def _unbroken(self, work: Coroutine[Any, Any, None], owner: asyncio.Task[Any] | None) -> None:
        """A task group takes a task that a handler has cancelled for one that is done; the others would go on alone."""
        try:
            await work
        except asyncio.CancelledError:
            if self._finished or owner is None or owner.cancelling():
                raise
            task = asyncio.current_task()
            raise RuntimeError(f"{task and task.get_name()} was cancelled, perhaps by a handler") from None

    async def _until_bug(self) -> None:
        await self._bug

    def _broke(self, error: BaseException) -> None:
        if not self._bug.done():
            self._bug.set_exception(error)

    def _progress(self) -> None:
        for consumer in self.consumers:
            consumer.progress()

    async def _finish(self) -> None:
        for consumer in self.consumers:
            await consumer.finish()
        for settler in self.settlers:
            await settler.flush()

    def _soon(self, consumer: Consumer) -> None:
        consumer.progress()
        task = asyncio.create_task(consumer.unblock())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _row(shared: SharedSlot, spec: HandlerSpec) -> SharedConsumer:
    row = shared.consumer(spec.stream, spec.group)
    if row is None:
        raise HandlerError(f"{spec.where}: more handlers than one pool can have; start a second pool")
    return row
