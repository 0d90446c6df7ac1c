"""What published an entry, and what a message has become: the facts that `supervisor explain` shows."""

from typing import Any

import pytest

from supervisor import Emit, Message, handler
from supervisor.broker import later_set, schedules
from supervisor.broker.entry_lookup import collect, collect_later
from supervisor.core.entry_fate import Presence, Verdict, explain
from supervisor.core.origin import Origin, OriginKind
from supervisor.core.schedule import Schedule
from supervisor.keys import cancelled_key, origins_key
from supervisor.publisher import Publisher
from supervisor.shared_state import SlotField
from tests.redis.worker import working
from tests.support.servers import AnyServer
from tests.support.waiting import eventually_async

STREAM, OUT, GROUP = "events", "out", "g"


async def later(redis: Any, later_id: str) -> Verdict:
    return explain(*await collect_later(redis, STREAM, later_id))


async def test_a_message_for_later_is_followed_into_its_stream(every_server: AnyServer) -> None:
    async with every_server.client() as redis, Publisher(every_server.url) as publisher:
        due = {n: (await publisher.publish(STREAM, {"n": n}, after_s=3600)).id for n in range(2)}
        verdict = await later(redis, due[0])
        assert verdict.presence is Presence.LATER and verdict.known and verdict.entry.later is not None
        assert verdict.entry.later.due_ms is not None
        assert 3_590_000 < verdict.entry.later.due_ms - verdict.entry.now_ms <= 3_600_000
        found = {n: await later_set.find(redis, STREAM, due[n]) for n in due}
        assert found[0] is not None and found[1] is not None
        entry = await later_set.run_now(redis, found[0])
        assert await later_set.cancel(redis, found[1])
        verdict = await later(redis, due[0])
        assert (verdict.presence, verdict.entry.id) == (Presence.STORED, entry)
        assert verdict.entry.origin == Origin(OriginKind.LATER, later=due[0])
        assert (await later(redis, due[1])).presence is Presence.CANCELLED
        unknown = await later(redis, "unknown")
        assert unknown.presence is Presence.NO_LATER and not unknown.known
        for key in (origins_key(STREAM), cancelled_key(STREAM)):
            assert 0 < await redis.ttl(key) <= 7 * 24 * 3600


async def test_a_schedule_is_named_with_its_tick(redis: Any) -> None:
    schedule = Schedule("prices", STREAM, "", 60_000, "UTC", {"n": 1}, "all")
    (tick,) = await schedules.publish_ticks(redis, schedule, [60_000])
    by_hand = await schedules.run_now(redis, schedule)
    for entry, tick_ms in ((tick, 60_000), (by_hand, None)):
        found, _ = await collect(redis, STREAM, entry)
        assert found.origin == Origin(OriginKind.SCHEDULE, schedule="prices", tick_ms=tick_ms)


@pytest.mark.parametrize("key", ["", "n"])
async def test_what_a_handler_has_emitted_is_found_in_both_directions(redis: Any, redis_url: str, key: str) -> None:
    @handler(STREAM, group=GROUP, key=key)
    async def emits(message: Message) -> list[Emit]:
        return [Emit(OUT, {"n": 1}), Emit(OUT, {"n": 2})]

    ids = [(await redis.xadd(STREAM, {"n": n})).decode() for n in range(2)]
    async with working(redis_url, emits) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == len(ids))
    out = [entry.decode() for entry, _ in await redis.xrange(OUT)]
    seen = []
    for entry in ids:
        _, (facts,) = await collect(redis, STREAM, entry)
        assert len(facts.emitted) == 2
        for stream, emitted_id in facts.emitted:
            found, _ = await collect(redis, stream, emitted_id)
            assert found.origin == Origin(OriginKind.EMIT, stream=STREAM, group=GROUP, ids=(entry,))
            seen.append(emitted_id)
    assert sorted(seen) == sorted(out)


async def test_what_can_not_be_noted_holds_up_nothing(redis: Any, redis_url: str) -> None:
    await redis.set(origins_key(STREAM), "no stream")
    async with Publisher(redis_url) as publisher:
        waits = await publisher.publish(STREAM, {"n": 1}, after_s=3600)
    found = await later_set.find(redis, STREAM, waits.id)
    assert found is not None and await later_set.run_now(redis, found)
    assert await redis.xlen(STREAM) == 1
