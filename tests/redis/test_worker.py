"""A worker's runtime on real servers: what becomes of each message."""

import asyncio
import traceback
from typing import Any

import pytest

from supervisor import BatchError, Message, Reject, Retry, handler
from supervisor.keys import dead_key, retries_key
from supervisor.shared_state import SlotField, WorkerState
from tests.redis.worker import GROUP, STREAM, Event, pending, working
from tests.support.waiting import eventually_async


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
        # The first one starts the runner's task; on a busy machine one may come while the worker does something else.
        for n in range(1, 21):
            await redis.xadd(STREAM, {"n": n})
            await eventually_async(lambda n=n: len(callers) == n)
            if sum("data_received" in names for names in callers) >= 3:
                return
    pytest.fail(f"not called in the turn that read the socket: {callers}")


async def test_reports_follow_a_worker_out_of_idleness_and_back(redis: Any, redis_url: str) -> None:
    goes_on = asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def hold(_message: Message) -> None:
        await goes_on.wait()

    async with working(redis_url, hold) as worker:

        def reported() -> tuple[int, int]:
            worker.runtime.report()
            return worker.shared.get(SlotField.STATE), worker.shared.get(SlotField.IN_FLIGHT)

        await asyncio.wait_for(worker.ready.wait(), 30)
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
        await asyncio.wait_for(worker.ready.wait(), 30)
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
