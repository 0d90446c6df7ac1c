"""A worker's runtime on real servers: what becomes of each message, and of what a dead one left."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
import structlog
from pydantic import BaseModel

from supervisor import BatchError, Message, Reject, Retry, handler
from supervisor.handling.loader import specs_of
from supervisor.keys import crashes_key, dead_key, retries_key
from supervisor.log import FaultLog
from supervisor.settings.model import Settings
from supervisor.shared_state import SharedState, SlotField, WorkerState
from supervisor.worker.runtime import Runtime
from tests.support.waiting import eventually_async

STREAM, GROUP = "events", "workers"


class Event(BaseModel):
    number: int


class Fault(NamedTuple):
    """A fault as it was reported."""

    event: str
    error: BaseException
    fields: dict[str, Any]


class Faults(FaultLog):
    """Keeps the faults that are reported to it."""

    def __init__(self, kept: list[Fault]) -> None:
        super().__init__(structlog.get_logger())
        self._kept = kept

    def __call__(self, event: str, error: BaseException, **fields: Any) -> None:
        self._kept.append(Fault(event, error, fields))

    def redis(self, event: str, error: BaseException, **fields: object) -> None:
        self._kept.append(Fault(event, error, fields))


class Worker:
    """A runtime in this process, with the faults it complained of."""

    def __init__(
        self,
        url: str,
        functions: list[Callable[..., Any]],
        shared: SharedState,
        *,
        name: str = "host:0",
        **sections: Any,
    ) -> None:
        settings = Settings(redis={"url": url}, **sections)
        self.faults: list[Fault] = []
        self.shared = shared.slot(0)
        self.ready = asyncio.Event()
        specs = specs_of(settings, functions)
        self.runtime = Runtime(settings, specs, self.shared, name, Faults(self.faults))
        self.task = asyncio.create_task(self.runtime.run(self.ready.set))

    async def stop(self, successor: str | None = None) -> None:
        await self.runtime.drain()
        await asyncio.wait_for(self.task, 10)
        await self.runtime.close(successor)

    async def vanish(self) -> None:
        """End as a killed process does: nothing is acked any more."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.runtime.close()


@asynccontextmanager
async def working(url: str, *functions: Callable[..., Any], **sections: Any) -> AsyncIterator[Worker]:
    worker = Worker(url, list(functions), SharedState(), **sections)
    try:
        yield worker
    finally:
        await worker.stop()


async def pending(redis: Any) -> int:
    return int((await redis.xpending(STREAM, GROUP))["pending"])


async def test_what_was_published_before_the_first_start_is_handled_once(every_server: Any) -> None:
    seen: list[str] = []

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        seen.append(message.fields["n"])

    async with every_server.client() as redis:
        for n in range(1000):
            await redis.xadd(STREAM, {"n": n})
        async with working(every_server.url, handle):
            await eventually_async(lambda: len(seen) == 1000)
        assert sorted(map(int, seen)) == list(range(1000))
        assert await pending(redis) == 0


async def test_a_plain_function_runs_in_a_thread_and_a_waiting_one_beside_others(redis: Any, redis_url: str) -> None:
    import threading

    threads: set[str] = set()
    together = asyncio.Event()
    waiting = 0

    @handler(STREAM, group=GROUP)
    def in_thread(message: dict[str, str]) -> None:
        threads.add(threading.current_thread().name)

    @handler(STREAM, group="waiters")
    async def wait_for_all(message: Message) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == 50:
            together.set()
        await together.wait()

    for n in range(50):
        await redis.xadd(STREAM, {"n": n})
    async with working(redis_url, in_thread, wait_for_all) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 100)
    assert together.is_set()
    assert threading.main_thread().name not in threads


async def test_a_failing_message_is_retried_and_then_a_dead_letter_with_its_reason(redis: Any, redis_url: str) -> None:
    attempts: list[int] = []

    @handler(STREAM, group=GROUP, max_deliveries=3, retry_base_s=0.01)
    async def fail(message: Message) -> None:
        attempts.append(message.deliveries)
        raise ValueError("no such user")

    entry = await redis.xadd(STREAM, {"user": "ada"})
    async with working(redis_url, fail) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1)
    assert attempts == [1, 2, 3]
    [(_, letter)] = await redis.xrange(dead_key(STREAM, GROUP))
    assert letter[b"id"] == entry
    assert letter[b"field:user"] == b"ada"
    assert b"ValueError: no such user" in letter[b"reason"]
    assert b"in fail" in letter[b"traceback"]
    assert letter[b"deliveries"] == b"3"
    assert await pending(redis) == 0
    assert not await redis.exists(retries_key(STREAM, GROUP))


async def test_retry_and_reject_choose_and_a_misfit_is_dead_at_once(redis: Any, redis_url: str) -> None:
    done: list[int] = []
    tries = 0

    @handler(STREAM, group=GROUP)
    async def choose(event: Event) -> None:
        nonlocal tries
        if event.number == 1:
            tries += 1
            if tries == 1:
                raise Retry(after_s=0.01)
        if event.number == 2:
            raise Reject("not wanted")
        done.append(event.number)

    for number in ("1", "2", "three"):
        await redis.xadd(STREAM, {"number": number})
    async with working(redis_url, choose):
        await eventually_async(lambda: done == [1])

        async def are_dead() -> bool:
            return bool(await redis.xlen(dead_key(STREAM, GROUP)) == 2)

        await eventually_async(are_dead)
    reasons = [letter[b"reason"] for _, letter in await redis.xrange(dead_key(STREAM, GROUP))]
    assert reasons[0] == b"not wanted"
    assert b"number" in reasons[1] and b"three" in reasons[1]
    assert await pending(redis) == 0


async def test_of_a_batch_only_what_failed_is_kept(redis: Any, redis_url: str) -> None:
    sizes: list[int] = []

    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def batch(messages: list[Message]) -> None:
        sizes.append(len(messages))
        bad = {m.id: ValueError("odd") for m in messages if int(m.fields["n"]) % 10 == 0}
        if bad:
            raise BatchError(bad)

    for n in range(100):
        await redis.xadd(STREAM, {"n": n})
    async with working(redis_url, batch) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 90)
    assert max(sizes) > 1
    assert await redis.xlen(dead_key(STREAM, GROUP)) == 10
    assert await pending(redis) == 0


async def test_a_handler_past_its_time_limit_is_cancelled_and_counted(redis: Any, redis_url: str) -> None:
    @handler(STREAM, group=GROUP, timeout_s=0.05, max_deliveries=1)
    async def hang(message: Message) -> None:
        await asyncio.Event().wait()

    await redis.xadd(STREAM, {"n": 1})
    async with working(redis_url, hang) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1)
    [(_, letter)] = await redis.xrange(dead_key(STREAM, GROUP))
    assert b"timeout_s = 0.05" in letter[b"reason"]


async def test_a_timeout_inside_a_handler_that_never_waited_hits_only_that_handler(redis: Any, redis_url: str) -> None:
    done = 0

    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def timed(message: Message) -> None:
        nonlocal done
        async with asyncio.timeout(0.02 if message.fields["n"] == "3" else 5):
            await asyncio.sleep(60 if message.fields["n"] == "3" else 0)
        done += 1

    for n in range(20):
        await redis.xadd(STREAM, {"n": n})
    async with working(redis_url, timed) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1 and done == 19)


async def test_concurrency_is_a_limit(redis: Any, redis_url: str) -> None:
    running, most, done = 0, 0, 0

    @handler(STREAM, group=GROUP, concurrency=3)
    async def count(message: Message) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.002)
        running -= 1
        done += 1

    for n in range(60):
        await redis.xadd(STREAM, {"n": n})
    async with working(redis_url, count):
        await eventually_async(lambda: done == 60)
    assert most == 3


async def test_without_a_backlog_the_handler_starts_before_the_next_read_is_sent(redis: Any, redis_url: str) -> None:
    reads: list[int] = []

    @handler(STREAM, group=GROUP)
    async def look(message: Message) -> None:
        reads.append(consumer._reader.outstanding)

    async with working(redis_url, look) as worker:
        (consumer,) = worker.runtime.consumers
        for n in range(1, 4):
            await redis.xadd(STREAM, {"n": n})
            await eventually_async(lambda n=n: len(reads) == n and consumer._reader.outstanding == 1)
    assert reads[1:] == [0, 0]  # the first read asks for one message only, which may be the first of many


async def test_an_idle_worker_calls_the_handler_in_the_turn_that_read_the_socket(redis: Any, redis_url: str) -> None:
    callers: list[set[str]] = []

    @handler(STREAM, group=GROUP)
    async def look(message: Message) -> None:
        callers.append({frame.name for frame in traceback.extract_stack()})

    async with working(redis_url, look):
        for n in range(1, 4):
            await redis.xadd(STREAM, {"n": n})
            await eventually_async(lambda n=n: len(callers) == n)
    assert all("data_received" in names for names in callers[1:])  # the first one starts the runner's task


async def test_reports_follow_a_worker_out_of_idleness_and_back(redis: Any, redis_url: str) -> None:
    goes_on = asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def hold(_message: Message) -> None:
        await goes_on.wait()

    async with working(redis_url, hold) as worker:

        def reported() -> tuple[int, int]:
            worker.runtime.report()
            return worker.shared.get(SlotField.STATE), worker.shared.get(SlotField.IN_FLIGHT)

        await asyncio.wait_for(worker.ready.wait(), 10)
        assert reported() == reported() == (WorkerState.IDLE, 0)
        await redis.xadd(STREAM, {"n": 1})
        await eventually_async(lambda: reported() == (WorkerState.WORK, 1))
        goes_on.set()
        await eventually_async(lambda: reported() == (WorkerState.IDLE, 0))
        worker.runtime.pause(True)
        worker.runtime.report()
        assert worker.shared.get(SlotField.PAUSED) == 1
        worker.runtime.pause(False)
        assert worker.shared.get(SlotField.PAUSED) == 0
        assert reported() == (WorkerState.IDLE, 0)


async def test_of_a_deep_backlog_two_batches_are_read_ahead_and_no_more(redis: Any, redis_url: str) -> None:
    done, goes_on = 0, asyncio.Event()

    @handler(STREAM, group=GROUP, concurrency=1, batch_size=10)
    async def count(message: Message) -> None:
        nonlocal done
        done += 1
        if done == 205:
            await goes_on.wait()

    for n in range(400):
        await redis.xadd(STREAM, {"n": n})
    async with working(redis_url, count) as worker:
        (consumer,) = worker.runtime.consumers
        await eventually_async(lambda: done == 205 and not consumer._reader.outstanding)
        await eventually_async(consumer._settler._idle.is_set)
        assert await pending(redis) <= 30
        assert consumer.executor.in_hand == await pending(redis) > 10
        goes_on.set()
        await eventually_async(lambda: done == 400)


async def test_a_successor_adopts_and_runs_what_had_been_started_alone(redis: Any, redis_url: str) -> None:
    shared = SharedState()
    stuck = asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def hang(message: Message) -> None:
        if message.fields["n"] == "9":
            stuck.set()
        await asyncio.Event().wait()

    for n in range(10):
        await redis.xadd(STREAM, {"n": n})
    first = Worker(redis_url, [hang], shared)
    await asyncio.wait_for(stuck.wait(), 10)
    await first.vanish()
    assert await pending(redis) == 10

    running, most, done = 0, 0, 0

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        done += 1

    second = Worker(redis_url, [handle], shared)
    await eventually_async(lambda: done == 10)
    await second.stop()
    assert most == 1
    assert second.shared.get(SlotField.ADOPTED) == 10
    assert await pending(redis) == 0
    assert not await redis.exists(crashes_key(STREAM, GROUP))


async def test_retries_and_their_count_survive_a_restart(redis: Any, redis_url: str) -> None:
    seen: list[int] = []

    @handler(STREAM, group=GROUP, retry_base_s=60)
    async def fail(message: Message) -> None:
        seen.append(message.deliveries)
        raise Retry(after_s=0.2 if message.deliveries == 1 else 60)

    await redis.xadd(STREAM, {"n": 1})
    first = Worker(redis_url, [fail], SharedState())
    await eventually_async(lambda: redis.hlen(retries_key(STREAM, GROUP)))
    await first.stop()
    assert await pending(redis) == 1
    second = Worker(redis_url, [fail], SharedState())
    await eventually_async(lambda: seen == [1, 2])
    await second.stop()


async def test_who_leaves_for_good_hands_its_retries_over(redis: Any, redis_url: str) -> None:
    @handler(STREAM, group=GROUP, retry_base_s=60)
    async def fail(message: Message) -> None:
        raise ValueError("later")

    await redis.xadd(STREAM, {"n": 1})
    worker = Worker(redis_url, [fail], SharedState())
    await eventually_async(lambda: redis.hlen(retries_key(STREAM, GROUP)))
    await worker.stop("host:7")
    consumers = {c["name"]: c["pending"] for c in await redis.xinfo_consumers(STREAM, GROUP)}
    assert consumers == {b"host:7": 1}


async def test_a_drain_finishes_what_runs_and_leaves_nothing_pending(redis: Any, redis_url: str) -> None:
    started = asyncio.Event()
    done = 0

    @handler(STREAM, group=GROUP)
    async def slow(message: Message) -> None:
        nonlocal done
        started.set()
        await asyncio.sleep(0.2)
        done += 1

    for n in range(5):
        await redis.xadd(STREAM, {"n": n})
    async with working(redis_url, slow):
        await asyncio.wait_for(started.wait(), 10)
    assert done > 0
    assert await pending(redis) == 0


async def test_redis_killed_and_restarted_costs_nothing(durable_server: Any) -> None:
    seen: set[str] = set()

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        seen.add(message.fields["n"])

    async with working(durable_server.url, handle) as worker:
        async with durable_server.client() as redis:
            await redis.xadd(STREAM, {"n": "before"})
            await eventually_async(lambda: "before" in seen)
        durable_server.kill()
        await eventually_async(lambda: worker.faults)
        durable_server.restart()
        async with durable_server.client() as redis:
            await redis.xadd(STREAM, {"n": "after"})
            await eventually_async(lambda: "after" in seen)
            await eventually_async(lambda: worker.runtime.settlers[0].backlog == 0)
            assert await pending(redis) == 0


async def test_a_lost_group_is_made_again(every_server: Any) -> None:
    seen: set[str] = set()

    @handler(STREAM, group=GROUP, start="$")
    async def handle(message: Message) -> None:
        seen.add(message.fields["n"])

    async with every_server.client() as redis, working(every_server.url, handle) as worker:
        await asyncio.wait_for(worker.ready.wait(), 10)
        await redis.flushall()
        await redis.xadd(STREAM, {"n": "after"})
        await eventually_async(lambda: "after" in seen)
        assert worker.faults


async def test_an_entry_deleted_while_pending_is_dropped_and_counted(redis: Any, redis_url: str) -> None:
    await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    entry = await redis.xadd(STREAM, {"n": 1})
    await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})
    await redis.xdel(STREAM, entry)

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        pytest.fail("there is no such message")

    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.TRIMMED) == 1)
    assert await pending(redis) == 0
