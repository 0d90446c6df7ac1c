"""What a worker leaves behind, and what its successor makes of it, on real servers."""

import asyncio
from collections import Counter
from typing import Any

from redis.asyncio import Redis

from supervisor import Message, Retry, handler
from supervisor.core.ids import parse_id
from supervisor.keys import crashes_key, dead_key, retries_key
from supervisor.shared_state import SharedState, SlotField
from tests.redis.worker import GROUP, STREAM, Worker, pending, working
from tests.support.waiting import eventually_async


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
    await asyncio.wait_for(stuck.wait(), 30)
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
        await asyncio.wait_for(started.wait(), 30)
    assert done > 0
    assert await pending(redis) == 0


async def test_a_retry_that_was_running_at_a_crash_is_a_suspect(redis_url: str, redis: Redis) -> None:
    """It raised first, and so has a record as if it waited; at the crash it ran beside an innocent one."""
    shared, runs = SharedState(), Counter[str]()
    hold = asyncio.Event()

    @handler(STREAM, group=GROUP, retry_base_s=0.05)
    async def handle(message: Message) -> None:
        name = message.fields["n"]
        runs[name] += 1
        if name == "bad" and runs[name] == 1:
            raise ValueError("the first time")
        await hold.wait()

    first = Worker(redis_url, [handle], shared)
    await redis.xadd(STREAM, {"n": "innocent"})
    await redis.xadd(STREAM, {"n": "bad"})
    await eventually_async(lambda: runs["bad"] == 2)
    await first.vanish()  # as if "bad" had killed the process in its second run

    together: list[int] = []
    running = 0

    @handler(STREAM, group=GROUP)
    async def watch(message: Message) -> None:
        nonlocal running
        running += 1
        together.append(running)
        await asyncio.sleep(0.05)
        running -= 1

    second = Worker(redis_url, [watch], shared)
    await eventually_async(lambda: len(together) == 2)
    await second.stop()
    assert together == [1, 1], "each suspect runs alone"


async def test_waiting_retries_keep_out_of_the_way_of_suspects(redis_url: str, redis: Redis) -> None:
    shared, running, hold = SharedState(), asyncio.Event(), asyncio.Event()

    @handler(STREAM, group=GROUP, retry_base_s=0.3)
    async def handle(message: Message) -> None:
        if message.fields["n"] == "later":
            raise ValueError("again")
        running.set()
        await hold.wait()

    first = Worker(redis_url, [handle], shared)
    for n in ("later", "slow"):
        await redis.xadd(STREAM, {"n": n})
    await eventually_async(lambda: redis.hlen(retries_key(STREAM, GROUP)))
    await asyncio.wait_for(running.wait(), 30)
    await first.vanish()
    log: list[str] = []

    @handler(STREAM, group=GROUP)
    async def watch(message: Message) -> None:
        log.append(f"+{message.fields['n']}")
        await asyncio.sleep(0.6)  # longer than the retry waits
        log.append(f"-{message.fields['n']}")

    second = Worker(redis_url, [watch], shared)
    await eventually_async(lambda: len(log) == 4)
    await second.stop()
    assert log == ["+slow", "-slow", "+later", "-later"]


async def test_a_drain_lets_no_retry_start_and_cancels_nothing(redis_url: str, redis: Redis) -> None:
    ended: list[str] = []

    @handler(STREAM, group=GROUP, retry_base_s=0.01, retry_max_s=0.02, max_deliveries=10_000)
    async def handle(message: Message) -> None:
        try:
            await asyncio.sleep(0.003)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        raise ValueError("again")

    for _ in range(40):
        await redis.xadd(STREAM, {"n": 1})
    for _ in range(10):
        shared = SharedState()
        worker = Worker(redis_url, [handle], shared, retry={"circuit_breaker": False})
        await eventually_async(lambda shared=shared: shared.slot(0).get(SlotField.FAILED) > 100)  # type: ignore[misc]
        await worker.stop()
    assert ended == []
    assert await pending(redis) == 40


async def test_a_long_adopted_list_is_started_batch_by_batch(redis_url: str, redis: Redis) -> None:
    """What was not started is not a suspect at the next crash, and is not run by a drain."""
    ids = [await redis.xadd(STREAM, {"n": n}) for n in range(500)]
    await redis.xgroup_create(STREAM, GROUP, "0")
    await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"}, count=500)
    shared, hold, running = SharedState(), asyncio.Event(), 0

    @handler(STREAM, group=GROUP, batch_size=10, concurrency=10, timeout_s=600)
    async def handle(message: Message) -> None:
        nonlocal running
        running += 1
        await hold.wait()

    worker = Worker(redis_url, [handle], shared)
    await eventually_async(lambda: running == 10)
    assert worker.ready.is_set()
    row = shared.slot(0).consumer(STREAM, GROUP)
    assert row is not None
    assert row.started() < parse_id(ids[30])
    stopping = asyncio.create_task(worker.stop())
    await eventually_async(lambda: worker.runtime._control.stopping)
    await asyncio.sleep(0.2)  # what was read ahead would be started by now
    hold.set()
    await stopping
    assert running <= 30
    assert await pending(redis) == 500 - running


async def test_a_process_with_nothing_running_is_ended_by_no_message(redis_server: Any, redis: Redis) -> None:
    """Its last message is done, and only Redis has not heard of it: should it be killed now, none is suspected."""
    started, release, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        started.set()
        await release.wait()
        ended.set()

    shared = SharedState()
    worker = Worker(redis_server.url, [handle], shared)
    entry = await redis.xadd(STREAM, {"n": 1})
    await asyncio.wait_for(started.wait(), 30)
    row = shared.slot(0).consumer(STREAM, GROUP)
    assert row is not None and row.started() == parse_id(entry)
    redis_server.pause()
    try:
        release.set()
        await asyncio.wait_for(ended.wait(), 30)
        await eventually_async(lambda: row.started() == (0, 0))
    finally:
        redis_server.resume()
    await worker.stop()


async def test_a_count_of_crashes_that_is_none_ends_no_worker(redis_url: str, redis: Redis) -> None:
    seen: list[str] = []

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        seen.append(message.id)

    entry = await redis.xadd(STREAM, {"n": 1})
    await redis.xgroup_create(STREAM, GROUP, "0")
    await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})
    await redis.hset(crashes_key(STREAM, GROUP), entry, "many")
    async with working(redis_url, handle):
        await eventually_async(lambda: seen == [entry.decode()])


async def test_a_letter_that_was_lost_with_its_process_is_written_by_the_next(redis_url: str, redis: Redis) -> None:
    seen: list[str] = []

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        seen.append(message.id)

    entry = await redis.xadd(STREAM, {"n": 1})
    await redis.xgroup_create(STREAM, GROUP, "0")
    await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})
    await redis.hset(crashes_key(STREAM, GROUP), entry, 3)
    async with working(redis_url, handle):
        await eventually_async(lambda: redis.xlen(dead_key(STREAM, GROUP)))
    assert seen == []
    assert await pending(redis) == 0 and not await redis.exists(crashes_key(STREAM, GROUP))
