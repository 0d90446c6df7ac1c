"""Schedules on every server: each tick is published once, by however many keepers."""

import asyncio
from typing import Any

import pytest

from supervisor.broker import schedules
from supervisor.core.schedule import LastTick, Schedule
from supervisor.keeper.scheduler import Scheduler
from supervisor.keys import cron_key, cron_paused_key
from tests.redis.moving import Log
from tests.support.servers import AnyServer

STREAM = "reports"
MINUTE_MS = 60_000
START_MS = 1_800_000_000_000 - 1_800_000_000_000 % MINUTE_MS


class Clock:
    def __init__(self) -> None:
        self.ms = START_MS

    def __call__(self) -> float:
        return self.ms / 1000


def minutely(missed: str = "once", name: str = "minutely", stream: str = STREAM) -> Schedule:
    return Schedule(name, stream, "", MINUTE_MS, "UTC", {"kind": "a", "at": "{tick}"}, missed)


async def published(redis: Any) -> int:
    return await redis.xlen(STREAM)


async def test_each_tick_is_published_once_by_three_keepers(every_server: AnyServer, redis: Any) -> None:
    clock = Clock()
    keepers = [Scheduler(redis, [minutely()], Log(), clock) for _ in range(3)]
    for minute in range(4):
        clock.ms = START_MS + minute * MINUTE_MS
        await asyncio.gather(*(keeper.run_cycle() for keeper in keepers))
        await asyncio.gather(*(keeper.run_cycle() for keeper in keepers))
        assert await published(redis) == minute, "a new schedule begins with its next tick"
    fields = [fields[b"at"] for _, fields in await redis.xrange(STREAM)]
    assert fields == [f"2027-01-15T08:0{minute}:00+00:00".encode() for minute in (1, 2, 3)]


async def test_ticks_that_no_pool_was_there_for(redis: Any) -> None:
    for missed, count in (("skip", 1), ("once", 1), ("all", 30)):
        await redis.flushall()
        clock = Clock()
        await Scheduler(redis, [minutely(missed)], Log(), clock).run_cycle()
        clock.ms += 30 * MINUTE_MS
        await Scheduler(redis, [minutely(missed)], Log(), clock).run_cycle()
        assert await published(redis) == count


@pytest.mark.parametrize("value", ["garbage", "\udcff", "9" * 18, "9" * 400])
async def test_a_malformed_time_of_a_pause_is_still_a_pause(redis: Any, value: str) -> None:
    schedule = minutely()
    await redis.hset(cron_paused_key(STREAM), schedule.name, value.encode("utf-8", "surrogateescape"))
    [shown] = await schedules.overview(redis, [schedule])
    assert shown["paused_since"] and shown["next"] == []


async def test_a_paused_schedule_misses_nothing(redis: Any) -> None:
    clock, schedule = Clock(), minutely("all")
    keeper = Scheduler(redis, [schedule], Log(), clock)
    await keeper.run_cycle()
    assert await schedules.pause(redis, schedule) and not await schedules.pause(redis, schedule)
    clock.ms += 5 * MINUTE_MS
    await keeper.run_cycle()
    assert await published(redis) == 0
    [shown] = await schedules.overview(redis, [schedule])
    assert shown["paused_since"] and shown["next"] == []
    assert await schedules.resume(redis, schedule) and not await schedules.resume(redis, schedule)
    assert LastTick.parse((await redis.hget(cron_key(STREAM), "minutely")).decode()).when == schedule.when
    assert len((await schedules.overview(redis, [schedule]))[0]["next"]) == schedules.SHOWN


async def test_the_last_tick_is_shown_and_not_the_start(redis: Any) -> None:
    clock, schedule = Clock(), minutely()
    clock.ms += 500
    keeper = Scheduler(redis, [schedule], Log(), clock)
    await keeper.run_cycle()
    assert (await schedules.overview(redis, [schedule]))[0]["last"] is None
    clock.ms += MINUTE_MS
    await keeper.run_cycle()
    assert (await schedules.overview(redis, [schedule]))[0]["last"] == "2027-01-15T08:01:00+00:00"


async def test_a_message_out_of_turn_changes_no_tick(redis: Any) -> None:
    entry = await schedules.run_now(redis, minutely())
    assert [one.decode() for one, _ in await redis.xrange(STREAM)] == [entry]
    assert not await redis.exists(cron_key(STREAM))


async def test_a_full_server_and_a_wrong_type_cost_no_tick(redis_server: AnyServer, redis: Any) -> None:
    clock, log = Clock(), Log()
    await redis.set("wrong", "1")
    keeper = Scheduler(redis, [minutely(), minutely(name="other", stream="wrong")], log, clock)
    await keeper.run_cycle()
    clock.ms += MINUTE_MS
    await redis.config_set("maxmemory", 1)
    await keeper.run_cycle()
    assert await published(redis) == 0
    await redis.config_set("maxmemory", 0)
    clock.ms += 600
    await keeper.run_cycle()
    assert await published(redis) == 1
    events = [(event, fields["schedule"]) for event, fields in log.events if event == "can't publish a schedule"]
    assert {name for _, name in events} == {"minutely", "other"}


async def test_between_ticks_nothing_is_asked(redis: Any) -> None:
    clock = Clock()
    keeper = Scheduler(redis, [minutely()], Log(), clock)
    await keeper.run_cycle()
    before = (await redis.info("stats"))["total_commands_processed"]
    for _ in range(50):
        clock.ms += 1_000
        await keeper.run_cycle()
    assert (await redis.info("stats"))["total_commands_processed"] == before + 1
    clock.ms = START_MS - 10 * MINUTE_MS
    await keeper.run_cycle()
    clock.ms += MINUTE_MS
    await keeper.run_cycle()
    assert await published(redis) == 0, "a clock that was set back repeats nothing"
