"""The count of registrations, on a real server."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from handlers.analytics import COUNTED, COUNTS, track_user_registration
from handlers.events import UserCreated
from supervisor.context import Context, enter


@pytest.fixture
async def surroundings(redis_url: str, tmp_path: Path) -> AsyncIterator[Context]:
    made = Context(app={}, state_dir=tmp_path, worker="host:0", redis_url=redis_url)
    yield made
    await made.aclose()


def user(user_id: int, when: str | None = "2026-11-24T23:30:00Z") -> UserCreated:
    return UserCreated.model_validate({"user_id": user_id, "email": "ada@example.com", "created_at": when})


async def test_each_user_counts_once_on_its_day(surroundings: Context, redis: Any) -> None:
    enter(surroundings)
    await asyncio.gather(*(track_user_registration(user(n % 5)) for n in range(20)))
    await track_user_registration(user(5, "2026-11-25T01:00:00+02:00"))  # the day before, in UTC
    await track_user_registration(user(6, "2026-11-25T01:00:00Z"))
    assert await redis.hgetall(COUNTS) == {b"2026-11-24": b"6", b"2026-11-25": b"1"}


async def test_without_a_time_it_is_today(surroundings: Context, redis: Any) -> None:
    enter(surroundings)
    before = datetime.now(UTC).date().isoformat()
    await track_user_registration(user(1, None))
    days = [day.decode() for day in await redis.hkeys(COUNTS)]
    assert days in ([before], [datetime.now(UTC).date().isoformat()])


async def test_what_fails_is_not_half_counted(surroundings: Context, redis: Any) -> None:
    enter(surroundings)
    await redis.set(COUNTS, "no hash")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await track_user_registration(user(1))
    assert not await redis.exists(COUNTED)
    await redis.delete(COUNTS)
    await track_user_registration(user(1))
    assert await redis.hgetall(COUNTS) == {b"2026-11-24": b"1"}
