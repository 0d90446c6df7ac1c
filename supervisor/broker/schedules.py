"""Reads and changes what Redis holds of schedules (last ticks, pauses), and publishes their messages."""

import time
from collections.abc import Sequence
from datetime import datetime
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from redis.asyncio import Redis

from supervisor.broker.scripts import PUBLISH_TICKS, RESUME_SCHEDULE, RUN_SCHEDULE
from supervisor.core.ids import parse_number
from supervisor.core.schedule import LastTick, Schedule
from supervisor.keys import cron_key, cron_paused_key, origins_key
from supervisor.text import decoded

#: Next times that are shown.
SHOWN = 3
#: The beginning of the year 9999: a later time can't be shown in every time zone.
_LATEST_MS = 253_370_764_800_000


async def last_tick(redis: Redis, schedule: Schedule, now_ms: int) -> LastTick:
    """Return the schedule's last tick; one that is new begins now. Raises redis-py's errors."""
    key = cron_key(schedule.stream)
    text: Any = await redis.hget(key, schedule.name)
    if text is None:
        await redis.hsetnx(key, schedule.name, f"{now_ms} {schedule.when}")
        text = await redis.hget(key, schedule.name)
    return LastTick.parse(decoded(text) if text else "")


async def publish_ticks(redis: Redis, schedule: Schedule, ticks: Sequence[int]) -> list[str]:
    """Publish the messages of ticks that nobody has published; return their ids. Raises redis-py's errors."""
    arguments: list[str | int] = []
    for tick in ticks:
        fields = schedule.message(tick)
        arguments += [tick, 2 * len(fields), *(text for pair in fields.items() for text in pair)]
    stream = schedule.stream
    keys = stream, cron_key(stream), cron_paused_key(stream), origins_key(stream)
    ids: Any = await redis.eval(PUBLISH_TICKS.text, len(keys), *keys, schedule.name, schedule.when, *arguments)
    return [entry.decode() for entry in ids]


async def run_now(redis: Redis, schedule: Schedule) -> str:
    """Publish the schedule's message beside its ticks; return the id. Raises redis-py's errors."""
    fields = schedule.message(_now_ms())
    flat = [text for pair in fields.items() for text in pair]
    keys = schedule.stream, origins_key(schedule.stream)
    entry: Any = await redis.eval(RUN_SCHEDULE.text, len(keys), *keys, schedule.name, *flat)
    return entry.decode()  # type: ignore[no-any-return]


async def pause(redis: Redis, schedule: Schedule) -> bool:
    """Publish no more ticks, in no pool, until `resume`; return False if it was paused already."""
    return bool(await redis.hsetnx(cron_paused_key(schedule.stream), schedule.name, str(_now_ms())))


async def resume(redis: Redis, schedule: Schedule) -> bool:
    """Let the schedule go on with its next tick; return False if it was not paused."""
    keys = cron_key(schedule.stream), cron_paused_key(schedule.stream)
    return bool(await redis.eval(RESUME_SCHEDULE.text, 2, *keys, schedule.name, schedule.when))


async def overview(redis: Redis, schedules: Sequence[Schedule]) -> list[dict[str, Any]]:
    """Return each schedule for JSON, with its next times. Raises redis-py's errors."""
    pipe = redis.pipeline(transaction=False)
    for schedule in schedules:
        pipe.hget(cron_key(schedule.stream), schedule.name)
        pipe.hget(cron_paused_key(schedule.stream), schedule.name)
    replies = iter(await pipe.execute() if schedules else [])
    found = []
    for schedule in schedules:
        last, paused = next(replies), next(replies)
        last_ms = LastTick.parse(decoded(last)).ms if last else None
        times = [_local(schedule, ms) for ms in islice(schedule.after(_now_ms()), SHOWN)]
        found.append(
            {
                "name": schedule.name,
                "stream": schedule.stream,
                "cron": schedule.cron or None,
                "every_s": schedule.every_ms / 1000 or None,
                "timezone": schedule.timezone,
                "missed": schedule.missed,
                "fields": dict(schedule.fields),
                "last": _local(schedule, last_ms) if last_ms is not None and _is_tick(schedule, last_ms) else None,
                "next": [] if paused else times,
                "paused_since": _local(schedule, parse_number(paused) or 0) if paused else None,
            }
        )
    return found


def _is_tick(schedule: Schedule, ms: int) -> bool:
    """Return whether this is a tick, and not the time at which the schedule began or was resumed."""
    return next(schedule.until(ms), None) == ms


def _local(schedule: Schedule, ms: int) -> str:
    return datetime.fromtimestamp(min(ms, _LATEST_MS) / 1000, ZoneInfo(schedule.timezone)).isoformat(timespec="seconds")


def _now_ms() -> int:
    return int(time.time() * 1000)
