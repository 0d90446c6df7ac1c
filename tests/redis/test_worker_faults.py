"""What a worker must survive of its handlers and of its server, on real servers; nothing may be lost or run twice."""

import asyncio
import time
from collections import Counter
from typing import Any, ClassVar

from redis.asyncio import Redis

from supervisor import BatchError, Message, Reject, Retry, handler
from supervisor.core.replayed_copy import ORIGIN
from supervisor.keys import dead_key, replay_key, retries_key
from supervisor.shared_state import SharedState, SlotField
from tests.redis.worker import GROUP, STREAM, Worker, pending, working
from tests.support.waiting import eventually_async


async def test_only_a_batch_error_acks_the_others(redis_url: str, redis: Redis) -> None:
    class ForeignError(Exception):
        failed: ClassVar[dict[str, BaseException]] = {}

    calls = 0

    @handler(STREAM, group=GROUP, retry_base_s=3600)
    async def handle(messages: list[Message]) -> None:
        nonlocal calls
        calls += 1
        raise ForeignError if calls == 1 else BatchError({"1-1": ValueError("of no message here")})

    for _ in range(2):
        shared = SharedState()
        await redis.xadd(STREAM, {"n": 1})
        async with working(redis_url, handle) as worker:
            await eventually_async(lambda worker=worker: worker.shared.get(SlotField.FAILED) >= 1)  # type: ignore[misc]
            assert worker.shared.get(SlotField.DONE) == 0
        del shared
    assert calls == 2
    assert await pending(redis) == 2


async def test_nonsense_in_a_retry_is_a_failure_like_any_other(redis_url: str, redis: Redis) -> None:
    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def handle(message: Message) -> None:
        raise Retry(after_s={"text": "1", "inf": float("inf"), "past": -1}[message.fields["n"]])  # type: ignore[arg-type]

    async with working(redis_url, handle) as worker:
        for n in ("text", "inf", "past"):
            await redis.xadd(STREAM, {"n": n})
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 3)
    letters = await redis.xrange(dead_key(STREAM, GROUP))
    assert all(b"after_s" in fields[b"reason"] for _, fields in letters)


async def test_words_that_no_utf8_can_hold_end_no_worker(redis_url: str, redis: Redis) -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def handle(message: Message) -> None:
        raise SilentError if message.fields["n"] == "silent" else ValueError("half a pair: \ud800")

    async with working(redis_url, handle) as worker:
        await redis.xadd(STREAM, {"n": "surrogate"})
        await redis.xadd(STREAM, {"n": "silent"})
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 2)
    reasons = [fields[b"reason"] for _, fields in await redis.xrange(dead_key(STREAM, GROUP))]
    assert b"\\ud800" in reasons[0] and b"SilentError" in reasons[1]


async def test_a_message_of_many_fields_can_die(redis_url: str, redis: Redis) -> None:
    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def handle(message: Message) -> None:
        raise ValueError("no")

    async with working(redis_url, handle) as worker:
        await redis.xadd(STREAM, {f"name{n}": f"value{n}" for n in range(6000)})
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1)
        await worker.runtime.settlers[0].flush()
        assert await pending(redis) == 0
    assert await redis.xlen(dead_key(STREAM, GROUP)) == 1


async def test_what_the_server_refuses_holds_up_nothing_else(redis_url: str, redis: Redis) -> None:
    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def handle(message: Message) -> None:
        if message.fields["n"] == "bad":
            raise ValueError("no")

    await redis.set(dead_key(STREAM, GROUP), "no stream")
    async with working(redis_url, handle) as worker:
        await redis.xadd(STREAM, {"n": "bad"})
        await eventually_async(lambda: any(b"WRONGTYPE" in str(e).encode() for _, e, _ in worker.faults))
        for _ in range(3000):
            await redis.xadd(STREAM, {"n": "good"})
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 3000)
        assert await pending(redis) <= 2, "the acks did not wait for the letter"
        await redis.delete(dead_key(STREAM, GROUP))

        async def written() -> bool:
            return int(await redis.xlen(dead_key(STREAM, GROUP))) == 1

        await eventually_async(written)


async def test_one_broken_stream_stops_no_other(redis_url: str, redis: Redis) -> None:
    seen: list[str] = []

    @handler("broken", group=GROUP)
    async def never(message: Message) -> None: ...

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        seen.append(message.id)

    await redis.set("broken", "no stream")
    async with working(redis_url, never, handle) as worker:
        await redis.xadd(STREAM, {"n": 1})
        await eventually_async(lambda: len(seen) == 1)
        assert worker.faults
        await redis.delete("broken")
        await eventually_async(worker.ready.is_set)


async def test_a_handler_that_is_out_of_time_is_cancelled_once(redis_url: str, redis: Redis) -> None:
    cleaned: list[str] = []
    cancelling: list[int] = []

    @handler(STREAM, group=GROUP, timeout_s=0.2, concurrency=1, retry_base_s=3600)
    async def handle(message: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        if message.fields["n"] == "next":
            cancelling.append(task.cancelling())
            return
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.3)
            cleaned.append("whole")

    async with working(redis_url, handle) as worker:
        await redis.xadd(STREAM, {"n": "slow"})
        await eventually_async(lambda: worker.shared.get(SlotField.FAILED) == 1)
        await redis.xadd(STREAM, {"n": "next"})
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 1)
    assert (cleaned, cancelling) == (["whole"], [0])


async def test_two_busy_streams_starve_nobody(redis_url: str, redis: Redis) -> None:
    """Acks of both wait at the same settler; each must go on when they are confirmed."""
    count = 10_000
    async with redis.pipeline(transaction=False) as pipe:
        for stream in ("one", "two"):
            for _ in range(count):
                pipe.xadd(stream, {"n": 1})
        await pipe.execute()

    @handler("one", group=GROUP)
    async def first(message: Message) -> None: ...

    @handler("two", group=GROUP)
    async def second(message: Message) -> None: ...

    for attempt in range(3):
        async with working(redis_url, first, second) as worker:
            await eventually_async(lambda worker=worker: worker.shared.get(SlotField.DONE) == 2 * count, 20)  # type: ignore[misc]
        for stream in ("one", "two"):
            await redis.xgroup_setid(stream, GROUP, "0") if attempt < 2 else None


async def test_a_lost_settling_connection_does_not_stop_the_reading(redis_url: str, redis: Redis) -> None:
    count = 30_000
    async with redis.pipeline(transaction=False) as pipe:
        for _ in range(count):
            pipe.xadd(STREAM, {"n": 1})
        await pipe.execute()

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None: ...

    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) > 500)

        async def felt_a_kill() -> bool:
            for row in await redis.client_list():
                if row["name"].startswith("supervisor-") and "xreadgroup" not in row["cmd"].lower():
                    await redis.client_kill_filter(_id=row["id"])
            return any("settle" in what for what, _, _ in worker.faults)

        await eventually_async(felt_a_kill)

        async def none_left() -> bool:
            (group,) = await redis.xinfo_groups(STREAM)
            return group["entries-read"] == count and group["pending"] == 0

        await eventually_async(none_left)


async def test_a_frozen_server_shifts_no_reply(redis_server: Any, redis: Redis) -> None:
    """A reply that comes after its reader gave up must not be taken for the next one's."""
    seen: Counter[str] = Counter()

    @handler(STREAM, group=GROUP, timeout_s=600)
    async def handle(message: Message) -> None:
        seen[message.fields["n"]] += 1

    async with working(redis_server.url, handle, consumer={"block_ms": 200}) as worker:
        await eventually_async(worker.ready.is_set)
        redis_server.pause()
        await eventually_async(lambda: bool(worker.faults), 20)
        redis_server.resume()
        for n in range(50):
            await redis.xadd(STREAM, {"n": n})
        await eventually_async(lambda: len(seen) == 50)
        await worker.runtime.settlers[0].flush()
        assert set(seen.values()) == {1}
        assert await pending(redis) == 0


async def test_whatever_a_handler_raises_is_a_failure(redis_url: str, redis: Redis) -> None:
    class OwnError(BaseException):
        pass

    def error_of(name: str) -> BaseException:
        group = BaseExceptionGroup("both", [OwnError(), ValueError()])
        return {"generator": GeneratorExit(), "own": OwnError(), "group": group, "stop": StopIteration()}[name]

    @handler(STREAM, group="async", retry_base_s=3600)
    async def handle(message: Message) -> None:
        if message.fields["n"] != "stop":  # in a coroutine Python itself makes it a RuntimeError
            raise error_of(message.fields["n"])
        raise ValueError

    @handler(STREAM, group="plain", retry_base_s=3600, timeout_s=30)
    def block(message: Message) -> None:
        raise error_of(message.fields["n"])

    async with working(redis_url, handle, block) as worker:
        for n in ("generator", "own", "group", "stop"):
            await redis.xadd(STREAM, {"n": n})
        await eventually_async(lambda: worker.shared.get(SlotField.FAILED) == 8)


async def test_a_cancel_that_comes_late_hits_no_other_message(redis_url: str, redis: Redis) -> None:
    done: list[str] = []

    @handler(STREAM, group=GROUP, concurrency=1, retry_base_s=3600)
    async def handle(message: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        if message.fields["n"] == "timer":  # a time limit made by hand, never taken back
            asyncio.get_running_loop().call_later(0.1, task.cancel)
        if message.fields["n"] == "self":
            time.sleep(0.02)
            task.cancel()
        done.append(message.fields["n"])

    async with working(redis_url, handle) as worker:
        for name in ("timer", "self"):
            await redis.xadd(STREAM, {"n": name})
            await asyncio.sleep(0.3)  # lets the cancel come while nothing is in hand
        for n in range(10):
            await redis.xadd(STREAM, {"n": n})
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) + worker.shared.get(SlotField.FAILED) == 12)
        assert worker.shared.get(SlotField.DONE) >= 11


async def test_groups_of_one_stream_hide_no_message_from_each_other(redis_url: str, redis: Redis) -> None:
    """They share a worker and the ids of their messages; what one has on its way to Redis the other has to run."""
    seen: list[str] = []
    started, full = asyncio.Event(), asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def refuse(message: Message) -> None:
        started.set()
        await full.wait()
        raise Reject("no")

    @handler(STREAM, group="others")
    async def handle(message: Message) -> None:
        seen.append(message.id)

    entry = await redis.xadd(STREAM, {"n": 1})
    await redis.xgroup_create(STREAM, "others", "$")
    worker = Worker(redis_url, [refuse, handle], SharedState())
    await asyncio.wait_for(asyncio.gather(started.wait(), worker.ready.wait()), 30)
    await redis.config_set("maxmemory", 1)
    full.set()
    await eventually_async(lambda: any("maxmemory" in str(error) for _, error, _ in worker.faults))
    # As if a keeper had handed it over to the other group's consumer, while this group's dead letter is refused.
    await redis.xclaim(STREAM, "others", "host:0", 0, [entry], force=True, justid=True)
    worker.runtime.rescan()
    await eventually_async(lambda: seen == [entry.decode()])
    await redis.config_set("maxmemory", 0)
    await worker.stop()


async def test_a_full_server_is_drained_also_by_a_worker_that_starts(every_server: Any) -> None:
    """XGROUP CREATE is refused then, also for a group that is there; reading is not, and frees memory in the end."""
    seen: list[str] = []

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        seen.append(message.id)

    async with every_server.client() as redis:
        entry = await redis.xadd(STREAM, {"n": 1})
        await redis.xgroup_create(STREAM, GROUP, "0")
        await redis.config_set("maxmemory", 1)
        async with working(every_server.url, handle) as worker:
            await eventually_async(lambda: seen == [entry.decode()])
            copies = replay_key(STREAM, GROUP)
            assert not await redis.exists(copies), "no stream for replays can be made"
            await redis.config_set("maxmemory", 0)
            await redis.xadd(copies, {ORIGIN: "1-1", "n": 2})
            worker.runtime.rescan()
            await eventually_async(lambda: seen == [entry.decode(), "1-1"])


async def test_a_retry_whose_entry_was_deleted_leaves_no_record(redis_url: str, redis: Redis) -> None:
    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None: ...

    async def nothing_pending() -> bool:
        return await pending(redis) == 0

    entry = await redis.xadd(STREAM, {"n": 1})
    await redis.xgroup_create(STREAM, GROUP, "0")
    await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})
    await redis.hset(retries_key(STREAM, GROUP), entry, "1:1:1")
    await redis.xdel(STREAM, entry)
    async with working(redis_url, handle):
        await eventually_async(nothing_pending)
    assert not await redis.exists(retries_key(STREAM, GROUP))
