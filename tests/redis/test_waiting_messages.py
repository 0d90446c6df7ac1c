"""Messages for later while they wait: found, counted, cancelled, published under a key."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from supervisor.broker import later_set as later
from supervisor.core.later import LaterMessage, digest_of, parse_member, to_member
from supervisor.errors import IdempotencyError, UsageError
from supervisor.keys import idempotency_key, later_key
from supervisor.publisher import Publisher
from supervisor.sync_publisher import SyncPublisher
from tests.redis.moving import KEY, STREAM, messages, note_all, now_ms, took_us, waiting
from tests.support.servers import AnyServer
from tests.support.waiting import eventually_async


@pytest.fixture
async def publisher(redis_server: AnyServer) -> AsyncIterator[Publisher]:
    async with Publisher(redis_server.url) as made:
        yield made


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
