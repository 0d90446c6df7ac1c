"""`TestPool`: a worker's runtime in the test's own event loop, on a real Redis server, with a movable clock."""

import asyncio
import time
from collections.abc import Awaitable, Generator, Iterable, Iterator
from contextlib import AsyncExitStack
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

from redis.asyncio import Redis

from supervisor.broker.connect import client
from supervisor.broker.dead_letters import pages
from supervisor.broker.replay import replay
from supervisor.core.batch_results import batch_results
from supervisor.core.dead_letter import Letter
from supervisor.core.replayed_copy import original_id
from supervisor.errors import SupervisorError, UsageError
from supervisor.handling.middleware import Middleware, NextBatch
from supervisor.keys import TURNS_CONSUMER, replay_key
from supervisor.log import FaultLog, logger
from supervisor.messages import Message
from supervisor.publisher import Published, Publisher
from supervisor.shared_state import SharedState
from supervisor.testing.due import DuePublisher
from supervisor.testing.embedded_server import database, state_folder
from supervisor.testing.project import Handlers, settings_of, specs_among
from supervisor.worker.lifespans import WorkerLifespans
from supervisor.worker.runtime import Runtime

#: How long `settled` waits by default.
SETTLE_LIMIT_S = 10.0
_WORKER = "test:0"
_POLL_S = 0.001


class NotSettledError(SupervisorError, AssertionError):
    """Messages are still in hand, or nobody reads them."""


class _Delivered(NamedTuple):
    """What is known of the messages of a group at one moment."""

    stream: str
    group: str
    #: Entries that were not delivered yet.
    lag: int
    pending: int
    #: The part of `pending` that waits for its turn.
    waiting_turn: int


class TestPool:
    """Runs handlers as a worker does: `async with TestPool(send, store) as pool: await pool.publish(...)`."""

    #: Not a test, whatever its name looks like to pytest.
    __test__ = False

    def __init__(
        self,
        *handlers: Handlers | Iterable[Handlers],
        app: dict[str, Any] | None = None,
        state: Any = None,
        config: Path | str | None = None,
    ) -> None:
        """`handlers` are functions with `@handler`, or modules with such functions.

        `app` is the `[app]` table. `state` is `context().state`; without it, the project's `@worker_lifespan` runs.
        With `config`, the path of a config.toml, its options of handlers, its middleware and its `[app]` count.
        """
        given = list(_flat(handlers))
        self._settings = settings_of(config, app)
        observed = Middleware(self._observe, takes_list=True)
        self._specs = [
            replace(spec, middleware=(observed, *spec.middleware)) for spec in specs_among(self._settings, given)
        ]
        self._state = state
        #: The messages whose handler has returned, in that order.
        self.done: list[Message] = []
        self._calls = 0
        self._stack = AsyncExitStack()
        self._runtime: Runtime
        self._due: DuePublisher
        self._running: asyncio.Task[None]
        #: A client of the pool's database: bytes in and out.
        self.redis: Redis
        self.publisher: Publisher

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack, await stack.enter_async_context(database()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def publish(self, stream: str, message: Any, **options: Any) -> Published:
        """Publish a message, as `Publisher.publish` does."""
        return await self.publisher.publish(stream, message, **options)

    async def settled(self, timeout_s: float = SETTLE_LIMIT_S) -> None:
        """Wait until each message is done, dead, or waits for a retry or for its time. Raises NotSettledError."""
        until_s = time.monotonic() + timeout_s
        while not await self._is_settled() or await self._due.publish():
            if self._running.done():
                await self._running
                raise NotSettledError("the pool has ended")
            if time.monotonic() > until_s:
                raise NotSettledError(f"not settled after {timeout_s:g} s: {await self._what_is_left()}")
            await asyncio.sleep(_POLL_S)

    def advance(self, seconds: float) -> Awaitable[None]:
        """Move the clock forward: retries, messages for later and schedules become due that much sooner.

        Awaited, it waits until all is settled.
        """
        if seconds < 0:
            raise UsageError(f"advance: {seconds} must not be negative")
        for consumer in self._runtime.consumers:
            consumer.retries.advance(seconds)
        self._due.advance(seconds)
        return _Settling(self)

    @property
    def retries(self) -> list[Message]:
        """The messages that wait for a retry."""
        return [message for consumer in self._runtime.consumers for message in consumer.retries.messages()]

    async def dead_letters(self) -> list[Letter]:
        """Return the dead letters of all groups, the oldest first in each."""
        return [
            letter
            for spec in self._specs
            async for page in pages(self.redis, spec.stream, spec.group)
            for letter in page
        ]

    async def replay(self) -> None:
        """Give all dead letters to their groups again, and wait until all is settled."""
        await replay(self.redis, await self.dead_letters())
        await self.settled()

    async def fates(self) -> dict[tuple[str, str, str], str]:
        """Return what has become of each entry in each group: `done`, `dead`, `pending`, `unread` or `lost`."""
        known = {(message.stream, message.group, message.id): "done" for message in self.done}
        known |= dict.fromkeys(await self._copies(), "pending")
        known |= {(letter.stream, letter.group, letter.id): "dead" for letter in await self.dead_letters()}
        found, redis = {}, cast("Any", self.redis)
        for spec in self._specs:
            (group,) = [one for one in await redis.xinfo_groups(spec.stream) if one["name"] == spec.group.encode()]
            unread = await redis.xrange(spec.stream, b"(" + group["last-delivered-id"])
            pending = await redis.xpending_range(spec.stream, spec.group, "-", "+", 1_000_000)
            fates = {one[0]: "unread" for one in unread} | {one["message_id"]: "pending" for one in pending}
            for entry, _ in await redis.xrange(spec.stream):
                key = spec.stream, spec.group, entry.decode()
                found[key] = fates.get(entry) or known.get(key, "lost")
        return found

    async def _copies(self) -> list[tuple[str, str, str]]:
        """Return stream, group and id of each replayed message that is not settled."""
        redis, copies = cast("Any", self.redis), []
        for spec in self._specs:
            for entry, fields in await redis.xrange(replay_key(spec.stream, spec.group)):
                message_id = original_id(entry, [part for pair in fields.items() for part in pair])
                copies.append((spec.stream, spec.group, message_id.decode()))
        return copies

    # The worker

    async def _start(self, stack: AsyncExitStack, url: str) -> None:
        settings = self._settings.changed(redis=self._settings.redis.changed(url=url), state_dir=state_folder())
        self.redis, self.publisher = client(url), Publisher(url)
        stack.push_async_callback(self.redis.aclose)
        stack.push_async_callback(self.publisher.aclose)
        surroundings = copy_context()  # `context()` is for the handlers, not for the test
        log = logger(settings, worker=_WORKER)
        faults, shared = FaultLog(log), SharedState().slot(0)
        self._due = DuePublisher(self.redis, settings, {spec.stream for spec in self._specs}, log)
        await self._due.publish()  # schedules begin
        self._runtime = surroundings.run(Runtime, settings, self._specs, shared, _WORKER, faults)
        ready = asyncio.Event()
        work = self._work(self._runtime, ready)
        self._running = asyncio.get_running_loop().create_task(work, context=surroundings)
        stack.push_async_callback(self._stop)
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait([waiting, self._running], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._running.done():
            await self._running

    async def _work(self, runtime: Runtime, ready: asyncio.Event) -> None:
        """Run the project's lifespans and the runtime in one task, as a worker does."""
        lifespans = WorkerLifespans(self._specs if self._state is None else [])
        try:
            runtime.context.state = await lifespans.enter() if self._state is None else self._state
            await runtime.run(ready.set)
        finally:
            try:
                await lifespans.leave()
            finally:
                await runtime.close()

    async def _stop(self) -> None:
        """Drain, as a worker does; what its own code raised is raised here."""
        if not self._running.done():
            await self._runtime.drain()
            _, left = await asyncio.wait([self._running], timeout=SETTLE_LIMIT_S)
            for task in left:
                task.cancel()
        await self._running

    async def _observe(self, messages: list[Message], call_next: NextBatch) -> None:
        """Note which messages are done; the outermost middleware."""
        self._calls += 1
        error: BaseException | None = None
        try:
            await call_next(messages)
        except BaseException as raised:
            error = raised
            raise
        finally:
            results = [(one, None) for one in messages] if error is None else batch_results(messages, error)
            self.done += [message for message, own in results if own is None]

    # What is left

    async def _is_settled(self) -> bool:
        """Whether nothing is left but retries that are not due, and what waits for its turn behind them.

        The groups are looked at in one step, and nothing may have been started meanwhile: a handler may have published.
        """
        calls, settlers = self._calls, self._runtime.settlers
        groups = await self._groups()
        waiting = 0
        for consumer in self._runtime.consumers:
            if consumer.executor.in_hand or consumer.retries.any_due:
                return False
            waiting += len(consumer.retries)
        return (
            calls == self._calls
            and not any(settler.backlog for settler in settlers)
            and not any(group.lag for group in groups)
            and sum(group.pending - group.waiting_turn for group in groups) == waiting
        )

    async def _groups(self) -> list[_Delivered]:
        """Return what Redis knows of all groups, also of those with copies of replayed messages."""
        sources = [(spec.stream, spec.group) for spec in self._specs]
        sources += [(replay_key(stream, group), group) for stream, group in sources]
        async with self.redis.pipeline(transaction=True) as pipe:
            for stream, group in sources:
                pipe.xinfo_groups(stream)
                pipe.xrevrange(stream, count=1)
                pipe.xinfo_consumers(stream, group)
            replies = await pipe.execute()
        found = []
        for (stream, group), groups, last, consumers in zip(
            sources, replies[::3], replies[1::3], replies[2::3], strict=True
        ):
            (own,) = [one for one in groups if one["name"] == group.encode()]
            unread = bool(last) and _id(last[0][0]) > _id(own["last-delivered-id"])
            lag = own.get("lag") or int(unread) if unread else 0
            turns = sum(one["pending"] for one in consumers if one["name"] == TURNS_CONSUMER.encode())
            found.append(_Delivered(stream, group, lag, own["pending"], turns))
        return found

    async def _what_is_left(self) -> str:
        running = [message for consumer in self._runtime.consumers for message in consumer.executor.messages()]
        left = [f"{one.id} of {one.stream} in {one.group} (attempt {one.deliveries})" for one in running]
        left += [f"{one.lag} unread in {one.group} of {one.stream}" for one in await self._groups() if one.lag]
        return ", ".join(left[:10]) or "acks are under way"


class _Settling:
    """What `advance` returns."""

    def __init__(self, pool: TestPool) -> None:
        self._pool = pool

    def __await__(self) -> Generator[Any, None, None]:
        return self._pool.settled().__await__()


async def assert_nothing_lost(pool: TestPool) -> None:
    """Check that each message of each group is done, dead, or still pending or unread. Raises AssertionError."""
    lost = [key for key, fate in (await pool.fates()).items() if fate == "lost"]
    if lost:
        listed = "\n".join(f"  {message_id} of {stream} in {group}" for stream, group, message_id in lost)
        raise AssertionError(f"{len(lost)} messages were acked without a handler that returned:\n{listed}")


def _flat(handlers: Iterable[Any]) -> Iterator[Handlers]:
    for one in handlers:
        yield from one if isinstance(one, list | tuple) else (one,)


def _id(text: bytes) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(b"-"))
