"""Messages for later on every server: each enters its stream once, when it is due, whatever else happens."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from supervisor.broker import later_set as later
from supervisor.broker.cancelling import cancel
from supervisor.broker.connect import client
from supervisor.core.later import LaterMessage, digest_of, parse_member, to_member
from supervisor.errors import IdempotencyError, UsageError
from supervisor.keeper import later_mover
from supervisor.keeper.later_mover import LaterMover
from supervisor.keys import LATER_STREAMS_KEY, idempotency_key, later_key
from supervisor.publisher import Publisher
from supervisor.sync_publisher import SyncPublisher
from tests.support.servers import AnyServer
from tests.support.waiting import eventually_async

STREAM = "events"
KEY = later_key(STREAM)


class Log:
    """What was logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    debug = info = warning = error


@pytest.fixture
async def publisher(redis_server: AnyServer) -> AsyncIterator[Publisher]:
    async with Publisher(redis_server.url) as made:
        yield made


@contextlib.asynccontextmanager
async def moving(redis: Any, url: str, *streams: str, log: Any = None) -> AsyncIterator[LaterMover]:
    mover = LaterMover(redis, url, streams, log or Log())
    task = asyncio.create_task(mover.run())
    try:
        yield mover
    finally:
        assert not task.done(), task
        await cancel(task)


async def messages(redis: Any, stream: str = STREAM) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in await redis.xrange(stream)]


def holds(redis: Any, count: int, stream: str = STREAM) -> Callable[[], Any]:
    async def has() -> bool:
        return await redis.xlen(stream) == count

    return has


async def now_ms(redis: Any) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


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


async def test_what_was_cancelled_or_moved_since_it_was_read_does_not_enter(redis: Any) -> None:
    due = await now_ms(redis)
    await redis.zadd(KEY, {b'{"n":"1"}': due, b'{"n":"2"}': due, b'{"n":"3"}': due})
    found = [waiting async for waiting in later.listed(redis, STREAM)]
    assert await later.cancel(redis, found[0]) and not await later.cancel(redis, found[0])
    await redis.zadd(KEY, {found[1].member: due + 3_600_000})
    moved = await later.move(redis, STREAM, [(one.member, one.message) for one in found if one.message])
    assert await messages(redis) == [{b"n": b"3"}] and len(moved) == 1
    assert await later.run_now(redis, found[1]) and await later.run_now(redis, found[1]) is None
    assert await messages(redis) == [{b"n": b"3"}, {b"n": b"2"}]


async def test_a_cancelled_message_is_cancelled_whatever_becomes_of_its_note(
    redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any, **__: Any) -> Any:
        raise OSError("the connection is lost")

    await redis.zadd(KEY, {b'{"n":"1"}': 4e12})
    [found] = [waiting async for waiting in later.listed(redis, STREAM)]
    monkeypatch.setattr("redis.asyncio.client.Pipeline.execute", lost)
    assert await later.cancel(redis, found) and not await redis.exists(KEY)


async def test_a_message_is_found_by_its_id(redis: Any, publisher: Publisher) -> None:
    ids = [(await publisher.publish(STREAM, {"n": n}, after_s=60 + n)).id for n in range(600)]
    found = await later.find(redis, STREAM, ids[321])
    assert found is not None and found.message is not None and found.message.fields == {"n": "321"}
    assert await later.find(redis, STREAM, "nobody") is None
    [one] = [one async for one in later.listed(redis, STREAM, 1)]
    assert one.id == ids[0] and one.as_dict()["fields"] == {"n": "0"}
    assert len([one async for one in later.listed(redis, STREAM, 550)]) == 550


async def test_an_id_is_found_in_every_way_to_write_it(redis: Any) -> None:
    plain = b'{"user_id": "7"}'
    members = {
        "u1": b'{ "fields": {"n": "2"}, "id" : "u1" }', "17": b'{"id": 17, "fields": {"n": "3"}}',
        "a/b": rb'{"id": "a\/b", "fields": {"n": "4"}}', "\u00e9": rb'{"id": "\u00e9", "fields": {"n": "5"}}',
        "*": b'{"id": "*", "fields": {"n": "6"}}', digest_of(plain): plain,
    }  # fmt: skip
    due = await now_ms(redis)
    await redis.zadd(KEY, dict.fromkeys(members.values(), due + 3_600_000))
    for message_id, member in members.items():
        found = await later.find(redis, STREAM, message_id)
        assert found is not None and found.member == member, message_id
    assert await later.find(redis, STREAM, "0123456789abcdef") is None


async def test_one_of_many_is_found_without_reading_the_others(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []

    def parsed(member: bytes) -> LaterMessage:
        read.append(member)
        return parse_member(member)

    monkeypatch.setattr(later, "parse_member", parsed)
    due = await now_ms(redis)
    await redis.zadd(KEY, {to_member(f"u{number}", {"n": str(number)}): due + 3_600_000 for number in range(10_000)})
    found = await later.find(redis, STREAM, "u9999")
    assert found is not None and found.member == to_member("u9999", {"n": "9999"}).encode()
    assert await later.find(redis, STREAM, "nobody") is None
    assert len(read) == 1


async def waiting(redis: Any, count: int, due: int) -> None:
    """Store messages that are due then."""
    for first in range(0, count, 10_000):
        numbers = range(first, min(count, first + 10_000))
        await redis.zadd(KEY, {to_member(f"id-{n}", {"n": str(n), "text": "x" * 100}): due for n in numbers})


async def took_us(redis: Any, *names: bytes) -> list[int]:
    """How long each of these commands took the server since its slow log was emptied."""
    return [one["duration"] for one in await redis.slowlog_get(20_000) if one["command"].split()[0].upper() in names]


async def note_all(redis: Any) -> None:
    """Have the server note how long each command takes."""
    await redis.config_set("slowlog-log-slower-than", 0)
    await redis.config_set("slowlog-max-len", 20_000)
    await redis.slowlog_reset()


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.long)])
async def test_cancelling_one_of_many_holds_up_the_server_for_a_short_time_only(redis: Any, count: int) -> None:
    await waiting(redis, count, await now_ms(redis) + 3_600_000)
    await redis.zadd(KEY, {b'{"a":"b"}': "+inf"})
    await note_all(redis)
    for wanted in (f"id-{count - 1}", digest_of(b'{"a":"b"}')):
        found = await later.find(redis, STREAM, wanted)
        assert found is not None and await later.cancel(redis, found)
    assert await later.find(redis, STREAM, "id-none") is None
    assert await redis.zcard(KEY) == count - 1
    took = await took_us(redis, b"ZSCAN")
    assert len(took) > count / 5_000 and sorted(took)[len(took) * 9 // 10] < sum(took) / (10 if count >= 100_000 else 1)


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


async def test_counts_of_what_waits(redis: Any) -> None:
    due = await now_ms(redis)
    await redis.zadd(KEY, {b"1": due - 5_000, b"2": due + 50_000, b"3": "+inf"})
    await redis.zadd(later_key("calm"), {b"1": due + 50_000})
    overdue, calm = await later.counts(redis, [STREAM, "calm", "empty"])
    assert (overdue.stream, overdue.waiting, overdue.malformed) == (STREAM, 2, 1)
    assert overdue.overdue_s is not None and 5 <= overdue.overdue_s < 30
    assert calm == later.LaterCount("calm", 1, None, 0)


# Keys


async def test_a_key_stores_a_message_for_later_once(redis: Any, publisher: Publisher) -> None:
    first = await publisher.publish(STREAM, {"n": "1"}, key="k", after_s=60)
    await asyncio.sleep(0.002)
    again = await publisher.publish(STREAM, {"n": "1"}, key="k", after_s=60)
    assert again == first._replace(replayed=True)
    assert await redis.zcard(KEY) == 1
    with pytest.raises(IdempotencyError):
        await publisher.publish(STREAM, {"n": "2"}, key="k", after_s=60)
    with pytest.raises(IdempotencyError):
        await publisher.publish(STREAM, {"n": "1"}, key="k")


async def test_a_key_is_remembered_as_long_as_the_caller_says(redis: Any, publisher: Publisher) -> None:
    await publisher.publish(STREAM, {"n": "1"}, key="a", key_ttl_s=60)
    assert 50_000 < await redis.pttl(idempotency_key(STREAM, "a")) <= 60_000
    await publisher.publish_many(STREAM, [{"n": "1"}], key="b", key_ttl_s=5.5, after_s=3600)
    assert 0 < await redis.pttl(idempotency_key(STREAM, "b")) <= 5_500
    await publisher.publish(STREAM, {"n": "1"}, key="c", key_ttl_s=0.05)

    async def forgotten() -> bool:
        return not await redis.exists(idempotency_key(STREAM, "c"))

    await eventually_async(forgotten)
    assert not (await publisher.publish(STREAM, {"n": "1"}, key="c")).replayed


@pytest.mark.parametrize("options", [{"key_ttl_s": 5}, {"key": "k", "key_ttl_s": 0}, {"key": "k", "key_ttl_s": 1e12}])
async def test_a_ttl_that_is_refused(publisher: Publisher, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="key"):
        await publisher.publish(STREAM, {"n": "1"}, **options)


async def test_a_batch_for_later_is_due_together(redis: Any, publisher: Publisher) -> None:
    ids = await publisher.publish_many(STREAM, [{"n": n} for n in range(3)], after_s=60)
    scores = [score for _, score in await redis.zrange(KEY, 0, -1, withscores=True)]
    assert len(set(ids)) == 3 and len(set(scores)) == 1


async def test_two_equal_messages_are_two(redis: Any, redis_server: AnyServer) -> None:
    def publish() -> None:
        with SyncPublisher(redis_server.url) as publisher:
            for _ in range(2):
                publisher.publish(STREAM, {"n": "1"}, after_s=60)

    await asyncio.to_thread(publish)
    assert await redis.zcard(KEY) == 2
