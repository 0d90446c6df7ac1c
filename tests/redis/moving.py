"""A stream with messages for later, and the keeper's task that moves them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from supervisor.broker.cancelling import cancel
from supervisor.core.later import to_member
from supervisor.keeper.later_mover import LaterMover
from supervisor.keys import later_key

STREAM = "events"
KEY = later_key(STREAM)


class Log:
    """What was logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    debug = info = warning = error


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
