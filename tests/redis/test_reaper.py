"""Whose messages a keeper takes: never those of an owner that may be alive, whatever idle times say."""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor import Message, handler
from supervisor.broker.scripts import CLAIM_PENDING
from supervisor.handling.loader import specs_of
from supervisor.keeper import reaper as reaper_module
from supervisor.keeper import redis_continuity
from supervisor.keeper.lease import take
from supervisor.keeper.reaper import Reaper
from supervisor.keeper.redis_continuity import RedisContinuity
from supervisor.keys import POOLS_KEY, host_key
from supervisor.log import FaultLog
from supervisor.settings.model import Settings
from supervisor.shared_state import HeaderField, SharedState, SlotField
from tests.support.servers import RedisServer, default_binary
from tests.support.stepped_clock import SteppedClock
from tests.support.waiting import eventually_async, next_ms

STREAM, GROUP = "events", "workers"
#: What the tests put for a lease, so that none waits for ten seconds.
LEASE_S = 0.3
AFTER_S = 0.3
HOUR_MS = 3_600_000


@handler(STREAM, group=GROUP)
async def handle(message: Message) -> None: ...


class Log:
    """What was taken."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []

    def info(self, _what: str, **details: Any) -> None:
        self.taken.append(details)


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaper_module, "LEASE_MS", int(LEASE_S * 1000))


@pytest.fixture
def shared() -> Iterator[SharedState]:
    made = SharedState()
    made.set(HeaderField.WORKERS, 2)
    for slot in range(2):
        made.slot(slot).set(SlotField.READY_NS, 1)
    yield made
    os.close(made.fd)


@pytest.fixture
def make(shared: SharedState) -> Callable[..., Reaper]:
    """A reaper of the pool "here": `make(redis, foreign_after_s=0)`; with `log`, what it tells."""

    def made(redis: Any, pool: str = "here", *, foreign_after_s: float = 0, log: Log | None = None) -> Reaper:
        specs, faults = specs_of(Settings(), [handle]), FaultLog(log or Log())
        return Reaper(redis, pool, f"token of {pool}", shared, specs, faults, foreign_after_s=foreign_after_s)

    return made


async def fill(redis: Any, consumer: bytes | str, count: int, idle_ms: int = 0) -> list[bytes]:
    """Messages that this consumer has held for `idle_ms`."""
    for n in range(count):
        await redis.xadd(STREAM, {"n": n})
    reply = await redis.xreadgroup(GROUP, consumer, {STREAM: ">"})
    ids = [entry for entry, _ in reply[0][1]]
    if idle_ms:
        await redis.xclaim(STREAM, GROUP, consumer, 0, ids, idle=idle_ms, justid=True)
    await next_ms(redis)  # what is delivered in the millisecond of a look is left for the next one
    return ids


async def held(redis: Any) -> dict[bytes, int]:
    return {row["name"]: row["pending"] for row in await redis.xinfo_consumers(STREAM, GROUP)}


async def looks(reaper: Reaper, seconds: float) -> None:
    """All that it does in this time."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        await reaper.look()
        await asyncio.sleep(0.02)


async def start(redis: Any) -> None:
    await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)


async def test_what_is_idle_for_an_hour_is_not_taken_while_its_pool_lives(every_server: Any, make: Any) -> None:
    async with every_server.client() as redis:
        await start(redis)
        await take(redis, "other", "t")
        await redis.hset(POOLS_KEY, "other", 1)
        for consumer in ("here:0", "other:0", "other:7", "young:0"):
            await fill(redis, consumer, 3, HOUR_MS)
        await redis.set(host_key("young"), "t", px=HOUR_MS)  # it lives, and has not said so in POOLS_KEY yet
        before = await held(redis)
        await looks(make(redis, foreign_after_s=AFTER_S), 3 * AFTER_S)
        assert await held(redis) == before


async def test_a_worker_that_waits_on_an_empty_stream_is_not_reaped(every_server: Any, make: Any) -> None:
    async with every_server.client() as redis, every_server.client() as waiting:
        await start(redis)
        await take(redis, "other", "t")
        await redis.hset(POOLS_KEY, "other", 1)
        for consumer in ("here:0", "other:0"):
            (entry,) = await fill(redis, consumer, 1)
            await redis.xack(STREAM, GROUP, entry)
        read = asyncio.create_task(waiting.xreadgroup(GROUP, "other:0", {STREAM: ">"}, block=10_000))
        await looks(make(redis, foreign_after_s=AFTER_S), 4 * AFTER_S)
        rows = {row["name"]: row for row in await redis.xinfo_consumers(STREAM, GROUP)}
        assert set(rows) == {b"here:0", b"other:0"}
        assert all(row["idle"] > AFTER_S * 1000 for row in rows.values()), "by their idle time they were gone"
        await redis.xadd(STREAM, {"n": 1})
        assert len((await read)[0][1]) == 1


async def test_consumers_of_other_programs_are_left_alone_unless_asked_for(every_server: Any, make: Any) -> None:
    async with every_server.client() as redis:
        await start(redis)
        for consumer in ("script", "gone:3", "a:b", b"\xff\xfe"):
            await fill(redis, consumer, 2, HOUR_MS)
        before = await held(redis)
        await looks(make(redis), 2 * LEASE_S)
        assert await held(redis) == before


@pytest.mark.parametrize("name", ["script", "gone:3", "a:b", b"\xff\xfe"])
async def test_what_another_program_left_is_taken_by_the_age_of_the_message(
    every_server: Any, make: Any, name: bytes | str
) -> None:
    log = Log()
    async with every_server.client() as redis:
        await start(redis)
        old = await fill(redis, name, 3, HOUR_MS)
        young = await fill(redis, name, 2)
        await redis.xclaim(STREAM, GROUP, name, 0, young, idle=-HOUR_MS, justid=True)  # as if just delivered
        reaper = make(redis, foreign_after_s=5.0, log=log)
        await looks(reaper, 0.2)
        assert len(log.taken) == 0, "it has not itself seen Redis for that long"
        reaper._continuity._since_s -= 6
        await reaper.look()
        named = name.encode() if isinstance(name, str) else name
        assert await held(redis) == {named: 2, b"here:0": 3}
        rows = await redis.xpending_range(STREAM, GROUP, "-", "+", 10)
        assert [row["message_id"] for row in rows if row["consumer"] == b"here:0"] == old
        assert {row["times_delivered"] for row in rows} == {1}, "a change of owner is not a delivery"
        assert [(row["messages"], row["foreign"]) for row in log.taken] == [(3, True)]
        # The others are settled by their owner after all, which was active just now: it stays.
        await redis.xack(STREAM, GROUP, *young)
        await reaper.look()
        assert named in await held(redis)
        sooner = make(redis, foreign_after_s=AFTER_S)
        await eventually_async(lambda: _gone(sooner, redis, named))


async def _gone(reaper: Reaper, redis: Any, name: bytes) -> bool:
    await reaper.look()
    return name not in await held(redis)


async def test_a_stranger_that_lives_loses_nothing_with_its_name(every_server: Any, make: Any) -> None:
    # On Redis < 7.2 whoever waits looks idle, so its consumer is deleted under it; on others it stays.
    async with every_server.client() as redis, every_server.client() as waiting:
        await start(redis)
        (entry,) = await fill(redis, "script", 1)
        await redis.xack(STREAM, GROUP, entry)
        read = asyncio.create_task(waiting.xreadgroup(GROUP, "script", {STREAM: ">"}, block=10_000))
        await looks(make(redis, foreign_after_s=AFTER_S), 3 * AFTER_S)
        deleted = await redis.xgroup_delconsumer(STREAM, GROUP, "script")
        assert deleted == 0 and b"script" not in await held(redis)
        added = await redis.xadd(STREAM, {"n": 1})
        assert [entry for entry, _ in (await read)[0][1]] == [added]
        assert await held(redis) == {b"script": 1}


async def test_one_that_renews_its_messages_keeps_them(every_server: Any, make: Any) -> None:
    async with every_server.client() as redis, every_server.client() as other:
        await start(redis)
        ids = await fill(redis, "script", 3)
        after_s = 3 * AFTER_S
        reaper = make(redis, foreign_after_s=after_s)
        looking = asyncio.create_task(looks(reaper, 2 * after_s))
        while not looking.done():
            await other.xclaim(STREAM, GROUP, "script", 0, ids, justid=True)
            await asyncio.sleep(AFTER_S / 6)
        assert await held(redis) == {b"script": 3}
        await looks(reaper, 2 * after_s)
        assert (await held(redis)).get(b"script", 0) == 0, "and no longer when it stops to"


async def test_entries_that_are_gone_from_the_stream_hold_up_nothing(every_server: Any, make: Any) -> None:
    async with every_server.client() as redis:
        await start(redis)
        ids = await fill(redis, "here:9", 450)
        await redis.xdel(STREAM, *ids[::2])
        await make(redis).look()
        found = await held(redis)
        assert set(found) <= {b"here:0", b"here:1"} and sum(found.values()) >= 225


async def test_two_keepers_never_take_the_same_message(
    every_server: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, both_begun = set(), asyncio.Event()

    # Both are elected: one was frozen in mid-look, and went on when the other had begun.
    async def elected_together(_redis: Any, _key: str, token: str) -> bool:
        begun.add(token)
        if len(begun) == 2:
            both_begun.set()
        await both_begun.wait()
        return True

    monkeypatch.setattr(reaper_module, "elected", elected_together)
    log = Log()
    async with every_server.client() as redis, every_server.client() as also:
        await start(redis)
        await redis.hset(POOLS_KEY, "gone", 1)
        for slot in range(4):
            await fill(redis, f"gone:{slot}", 1000)
        for pool in ("here", "there"):
            await take(redis, pool, f"token of {pool}")
        both = [make(redis, "here", log=log), make(also, "there", log=log)]
        await asyncio.gather(*(looks(one, 3 * LEASE_S) for one in both))
        found = await held(redis)
        assert sum(row["messages"] for row in log.taken) == 4000 == sum(found.values())
        assert {name.rpartition(b":")[0] for name in found} == {b"here", b"there"}
        assert len({row["consumer"] for row in log.taken if row["messages"]}) == 4


async def test_a_frozen_pool_is_dead_only_when_its_lease_is_over(every_server: Any, make: Any) -> None:
    async with every_server.client() as redis:
        await start(redis)
        await redis.hset(POOLS_KEY, "gone", 1)
        await fill(redis, "gone:0", 3)
        await take(redis, "gone", "t")
        reaper = make(redis)
        await looks(reaper, 2 * LEASE_S)
        assert await held(redis) == {b"gone:0": 3}
        await redis.delete(host_key("gone"))
        await reaper.look()
        assert b"gone:0" not in await held(redis)


async def test_a_pool_is_forgotten_a_day_after_it_died_with_nothing_left(every_server: Any, make: Any) -> None:
    async with every_server.client() as redis:
        await start(redis)
        await take(redis, "alive", "t")
        now_ms = int(time.time() * 1000)
        await redis.hset(POOLS_KEY, mapping={"long": 1, "lately": now_ms, "alive": 1})
        reaper = make(redis)
        await reaper.look()
        assert set(await redis.hkeys(POOLS_KEY)) == {b"long", b"lately", b"alive"}, "not seen for a lease yet"
        await looks(reaper, 2 * LEASE_S)
        assert set(await redis.hkeys(POOLS_KEY)) == {b"lately", b"alive"}


# What is a break in what a keeper sees


async def test_a_keeper_that_was_frozen_may_have_missed_an_outage(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Short enough for the server's clock not to look as if it was set.
    monkeypatch.setattr(redis_continuity, "LOOK_GAP_S", 0.15)
    clock = [100.0]
    sight = RedisContinuity(lambda: clock[0])
    for _ in range(3):
        clock[0] += 0.1
        await sight.look(redis)
    assert sight.unbroken_s == pytest.approx(0.3)
    clock[0] += 0.2
    await sight.look(redis)
    assert sight.unbroken_s == 0


async def test_a_server_that_was_started_again_between_two_looks_is_a_break(durable_server: Any) -> None:
    clock = [100.0]
    sight = RedisContinuity(lambda: clock[0])
    for _ in range(3):
        async with durable_server.client() as redis:  # a new connection: no command fails
            await sight.look(redis)
        clock[0] += 0.1
    before = sight.unbroken_s
    assert before == pytest.approx(0.3)
    durable_server.restart()
    async with durable_server.client() as redis:
        await sight.look(redis)
        assert sight.unbroken_s == 0 < before
        clock[0] += 0.2
        await sight.look(redis)
        assert sight.unbroken_s == pytest.approx(0.2)


@pytest.fixture
def stepped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[RedisServer, SteppedClock]]:
    """A server whose time of day the test sets."""
    clock = SteppedClock(tmp_path)
    with monkeypatch.context() as patched:
        for name, value in clock.environment.items():
            patched.setenv(name, value)
        server = RedisServer(default_binary())
    with server:
        yield server, clock


async def test_a_clock_that_is_set_kills_nobody(stepped: tuple[RedisServer, SteppedClock], make: Any) -> None:
    server, clock = stepped
    async with server.client() as redis:
        await start(redis)
        await redis.hset(POOLS_KEY, "other", 1)
        await fill(redis, "other:0", 3)
        await fill(redis, "script", 3)
        await take(redis, "other", "t")
        reaper = make(redis, foreign_after_s=60)
        reaper._continuity._since_s -= 120
        await looks(reaper, 2 * LEASE_S)
        clock.step(3600)
        assert not await redis.exists(host_key("other")), "its lease is over, by that clock"
        (row, *_) = await redis.xpending_range(STREAM, GROUP, "-", "+", 1, consumername="script")
        assert row["time_since_delivered"] > HOUR_MS - 60_000
        await reaper.look()
        assert await held(redis) == {b"other:0": 3, b"script": 3}
        await take(redis, "other", "t")  # as its keeper does within a third of a lease
        await looks(reaper, 2 * LEASE_S)
        assert await held(redis) == {b"other:0": 3, b"script": 3}


async def test_who_takes_a_lease_is_known_before_it_has_read_anything(redis: Any) -> None:
    """Otherwise no pool would take over from one that was killed before its keeper's first look."""
    assert await take(redis, "young", "t")
    assert await redis.hexists(POOLS_KEY, "young")
    assert not await take(redis, "young", "another")


async def test_an_owner_that_is_back_keeps_what_it_has_read_again(
    every_server: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool is stopped and started while another one's keeper looks: what was found leaseless is not any more."""
    async with every_server.client() as redis, every_server.client() as back:
        await start(redis)
        await redis.hset(POOLS_KEY, "other", 1)
        await fill(redis, "other:0", 3, HOUR_MS)
        plain, came_back = redis.eval, 0

        async def interrupted(script: str, *words: Any) -> Any:
            nonlocal came_back
            if script == CLAIM_PENDING.text and not came_back:
                await next_ms(back)  # a clock of milliseconds has to show that it was later
                came_back = len((await back.xreadgroup(GROUP, "other:0", {STREAM: "0"}))[0][1])
            return await plain(script, *words)

        monkeypatch.setattr(redis, "eval", interrupted)
        reaper = make(redis)
        await asyncio.sleep(LEASE_S)
        await reaper.look()
        assert came_back == 3 and await held(redis) == {b"other:0": 3}
        await next_ms(back)
        await reaper.look()  # it has no lease now either, and does not read
        assert await held(redis) in ({b"here:0": 3}, {b"here:1": 3})
