"""A relay in the process of the test, and what it has published."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from supervisor.outbox.relay import Relay
from supervisor.outbox.tables import outbox
from supervisor.settings.model import Settings
from supervisor.shared_state import SharedState
from tests.support.postgres import PostgresServer

STREAM = "events"


@dataclass
class Place:
    """A database with the tables, by the URLs of a sync and of an async driver."""

    sync: str
    asynchronous: str
    server: PostgresServer | None = None


def relay_of(redis_url: str, url: str, token: str = "pool") -> tuple[Relay, SharedState]:
    shared = SharedState()
    return Relay(Settings(redis={"url": redis_url}, outbox={"url": url}), shared, token), shared


@asynccontextmanager
async def relaying(redis_url: str, url: str, token: str = "pool") -> AsyncIterator[SharedState]:
    relay, shared = relay_of(redis_url, url, token)
    stop = asyncio.Event()

    async def go_on() -> None:
        while not stop.is_set():
            await asyncio.sleep(min(await relay.run_cycle(), 0.05))

    task = asyncio.create_task(go_on())
    try:
        yield shared
    finally:
        stop.set()
        await task
        await relay.close()


async def numbers(redis: Any, stream: str = STREAM) -> list[int]:
    return [int(fields[b"n"]) for _, fields in await redis.xrange(stream)]


def waiting(engine: Any) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(select(func.count()).select_from(outbox)))
