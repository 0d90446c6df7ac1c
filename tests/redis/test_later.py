"""Messages for later on every server: each enters its stream once, when it is due, whatever else happens."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from supervisor.broker import later_set as later
from supervisor.broker.connect import client
from supervisor.keeper import later_mover
from supervisor.keys import LATER_STREAMS_KEY, later_key
from supervisor.publisher import Publisher
from tests.redis.moving import KEY, STREAM, Log, holds, messages, moving, now_ms, waiting
from tests.support.servers import AnyServer
from tests.support.waiting import eventually_async


@pytest.fixture
async def publisher(redis_server: AnyServer) -> AsyncIterator[Publisher]:
    async with Publisher(redis_server.url) as made:
        yield made


async def eval_calls(redis: Any) -> int:
    stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "hgetall"))


async def test_what_is_due_enters_and_what_is_not_waits(every_server: AnyServer, redis: Any) -> None:
    async with Publisher(every_server.url) as publisher, moving(redis, every_server.url, STREAM):
        waits = await publisher.publish(STREAM, {"n": "later"}, after_s=3600)
        soon = await publisher.publish(STREAM, {"n": 1, "raw": "ä"}, after_s=0.3)
        past = await publisher.publish(STREAM, {"n": "past"}, at=datetime(2020, 1, 1, tzinfo=UTC))
        assert soon.due is not None and waits.due is not None and past.due == datetime(2020, 1, 1, tzinfo=UTC)
        assert 3590 < waits.due.timestamp() - time.time() < 3610
        await eventually_async(holds(redis, 2))
        ids = [entry.decode() for entry, _ in await redis.xrange(STREAM)]
        assert await messages(redis) == [{b"n": b"past"}, {b"n": b"1", b"raw": "ä".encode()}]
        assert int(ids[1].partition("-")[0]) >= soon.due.timestamp() * 1000
        assert [one.id async for one in later.listed(redis, STREAM)] == [waits.id]


async def test_any_program_may_write_one(every_server: AnyServer, redis: Any) -> None:
    async with moving(redis, every_server.url, STREAM) as mover:
        await eventually_async(lambda: bool(mover._watched))
        due = await now_ms(redis) + 100
        await redis.zadd(KEY, {b'{"user_id":"1"}': due, b'{"id":"u1","fields":{"n":12345678901234567890}}': due + 1})
        await eventually_async(holds(redis, 2))
        assert await messages(redis) == [{b"user_id": b"1"}, {b"n": b"12345678901234567890"}]
        assert not await redis.exists(KEY)
        [(entry, _), _] = await redis.xrange(STREAM)
        assert 0 <= int(entry.partition(b"-")[0]) - due < 5_000


async def test_a_stream_without_a_handler_is_found(redis_server: AnyServer, redis: Any, publisher: Publisher) -> None:
    async with moving(redis, redis_server.url, STREAM):
        await publisher.publish("other", {"n": "1"}, after_s=0.1)
        await eventually_async(holds(redis, 1, "other"))
        assert await redis.hkeys(LATER_STREAMS_KEY) == [b"other"]


async def test_a_noted_stream_is_forgotten_after_a_day(redis_server: AnyServer, redis: Any) -> None:
    await redis.hset(LATER_STREAMS_KEY, mapping={"old": 1, "kept": 1, "new": int(time.time() * 1000)})
    await redis.zadd(later_key("kept"), {b'{"a":"b"}': await now_ms(redis) + 3_600_000})
    async with moving(redis, redis_server.url, STREAM):

        async def forgotten() -> bool:
            return sorted(await redis.hkeys(LATER_STREAMS_KEY)) == [b"kept", b"new"]

        await eventually_async(forgotten)


async def test_nothing_is_asked_while_nothing_is_due(redis_server: AnyServer, redis: Any) -> None:
    async with moving(redis, redis_server.url, STREAM, "more") as mover:
        await eventually_async(lambda: set(mover._look_s.values()) == {float("inf")})
        await redis.zadd(KEY, {b'{"a":"b"}': await now_ms(redis) + 3_600_000})

        await eventually_async(lambda: 3000 < mover._look_s[STREAM] - time.monotonic() < 3600)
        before = await eval_calls(redis)
        await redis.xadd(STREAM, {"n": "1"})
        await asyncio.sleep(3 * later_mover.POLL_S)  # as long as three looks of a keeper that polls
        assert await eval_calls(redis) == before


async def test_a_server_that_tells_no_changes_is_polled(
    redis_server: AnyServer, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.acl_setuser("default", enabled=True, nopass=True, commands=["-client|tracking"])
    async with moving(redis, redis_server.url, STREAM) as mover:
        await redis.zadd(KEY, {b'{"a":"b"}': await now_ms(redis) + 100})
        await eventually_async(holds(redis, 1))
        assert not mover._watched


async def test_it_goes_on_after_an_outage(redis_server: AnyServer, redis: Any, publisher: Publisher) -> None:
    log = Log()
    async with client(redis_server.url) as own, moving(own, redis_server.url, STREAM, log=log):
        await redis_server.down() if hasattr(redis_server, "down") else await redis.client_kill_filter(skipme=True)
        await publisher.publish(STREAM, {"n": "1"}, after_s=0.1)
        await eventually_async(holds(redis, 1))


async def test_malformed_members_stay_and_hold_up_nothing(redis_server: AnyServer, redis: Any) -> None:
    due, log = await now_ms(redis), Log()
    await redis.zadd(KEY, {f"bad {n}".encode(): due - 1000 + n for n in range(later_mover.BATCH_MAX + 5)})
    await redis.zadd(KEY, {b'{"n":"1"}': due})
    async with moving(redis, redis_server.url, STREAM, log=log):
        await eventually_async(holds(redis, 1))
    assert await redis.zcount(KEY, "+inf", "+inf") == later_mover.BATCH_MAX + 5
    assert [event for event, _ in log.events] == ["malformed message for later"]
    [one] = await later.counts(redis, [STREAM])
    assert one == later.LaterCount(STREAM, 0, None, later_mover.BATCH_MAX + 5)
    async with moving(redis, redis_server.url, STREAM, log=log):
        await redis.zadd(KEY, {b'{"n":"2"}': due})
        await eventually_async(holds(redis, 2))
    assert len(log.events) == 1, "they are not looked at again"
    [bad] = [waiting async for waiting in later.listed(redis, STREAM, 1)]
    assert bad.as_dict()["error"].startswith("not JSON") and bad.as_dict()["due"] is None
    assert await later.run_now(redis, bad) is None
    assert await later.cancel(redis, bad)


async def test_a_full_server_keeps_what_is_due(redis_server: AnyServer, redis: Any, publisher: Publisher) -> None:
    await publisher.publish(STREAM, {"n": "1"}, after_s=0)
    await redis.config_set("maxmemory", 1)
    log = Log()
    async with moving(redis, redis_server.url, STREAM, log=log):
        await eventually_async(lambda: [event for event, _ in log.events] == ["can't publish what is due"])
        assert "OOM" in log.events[0][1]["error"] or "memory" in log.events[0][1]["error"]
        assert await redis.zcard(KEY) == 1
        await redis.config_set("maxmemory", 0)
        await eventually_async(holds(redis, 1))


async def test_a_key_of_another_type_holds_up_no_other_stream(redis_server: AnyServer, redis: Any) -> None:
    await redis.set("wrong", "1")
    due = await now_ms(redis)
    for stream in ("wrong", "right"):
        await redis.zadd(later_key(stream), {b'{"n":"1"}': due})
    await redis.set(later_key("worse"), "1")
    async with moving(redis, redis_server.url, "wrong", "worse", "right"):
        await eventually_async(holds(redis, 1, "right"))
    assert await redis.zcard(later_key("wrong")) == 1


async def test_a_stream_that_this_user_may_not_touch_holds_up_no_other(redis_server: AnyServer, redis: Any) -> None:
    due, old_ms = await now_ms(redis), 1
    for stream in ("theirs", "ours"):
        await redis.zadd(later_key(stream), {b'{"n":"1"}': due})
    await redis.hset(LATER_STREAMS_KEY, mapping={"old": old_ms, "theirs": due, "ours": due})
    keys = ["ours", "supervisor:{ours}:*", LATER_STREAMS_KEY]
    await redis.acl_setuser("default", enabled=True, nopass=True, reset_keys=True, keys=keys)
    async with moving(redis, redis_server.url, "theirs"):
        await eventually_async(holds(redis, 1, "ours"))


async def test_two_keepers_move_each_once_and_in_order(redis_server: AnyServer, redis: Any) -> None:
    count, due = 2_000, await now_ms(redis)
    await redis.zadd(KEY, {json.dumps({"n": f"{n:05}"}): due - count + n for n in range(count)})
    async with (
        redis_server.client() as other,
        moving(redis, redis_server.url, STREAM),
        moving(other, redis_server.url, STREAM),
    ):
        await eventually_async(holds(redis, count))
    assert [int(fields[b"n"]) for fields in await messages(redis)] == list(range(count))
    assert not await redis.exists(KEY)


async def test_large_messages_are_moved_in_small_batches(redis_server: AnyServer, redis: Any) -> None:
    due = await now_ms(redis)
    await redis.zadd(KEY, {json.dumps({"n": str(n), "text": "x" * 100_000}): due + n for n in range(60)})
    async with moving(redis, redis_server.url, STREAM) as mover:
        await eventually_async(holds(redis, 60))
        assert mover._batch[STREAM] < 10


@pytest.mark.parametrize("count", [4_000, pytest.param(100_000, marks=pytest.mark.long)])
async def test_many_that_are_due_at_once_enter_in_bites_and_hold_up_no_other(
    redis_server: AnyServer, redis: Any, publisher: Publisher, count: int
) -> None:
    await waiting(redis, count, await now_ms(redis))
    passed, slowest_s, probes = 0, 0.0, 0
    began_s = time.monotonic()
    async with moving(redis, redis_server.url, STREAM):
        while (before := await redis.xlen(STREAM)) < count + probes:
            sent_s = time.monotonic()
            await publisher.publish(STREAM, {"n": "probe"})
            slowest_s = max(slowest_s, time.monotonic() - sent_s)
            probes += 1
            passed = max(passed, await redis.xlen(STREAM) - before - 1)
            await asyncio.sleep(0.001)
    took_s = time.monotonic() - began_s
    moved = [fields[b"n"] for fields in await messages(redis) if fields[b"n"] != b"probe"]
    assert len(moved) == len(set(moved)) == count and probes > 3
    assert passed <= 10 * later_mover.BATCH_MAX, "a publish waits for a few bites at most"
    stats = await redis.info("commandstats")
    assert stats["cmdstat_eval"]["calls"] > count / later_mover.BATCH_MAX
    assert slowest_s < took_s / (5 if count >= 100_000 else 1)
