"""Following a stream: server-sent events from now, or from what the client saw last.

A tail has a connection of its own, waits out a Redis that is gone, and ends when the service is told
to stop, so that an open browser never holds up a shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from redis.exceptions import RedisError, ResponseError

from supervisor.broker.connect import client

from .problems import Problem
from .service import RedisDep, Service, ServiceDep
from .shapes import EntryId, Stream, problems
from .streams import as_message

if TYPE_CHECKING:
    from redis.asyncio import Redis

router = APIRouter(prefix="/v1/streams", tags=["streams"])
#: Each is a connection to Redis.
TAILS_MAX = 100
BLOCK_MS = 5_000
COUNT = 100
#: What the browser waits before it comes again, and how this service comes back to Redis.
RETRY_MS = 2_000
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_CLIENT_LIMIT_S = BLOCK_MS / 1000 + 3
_FIRST_ID = "0-0"


async def _begin(
    stream: Stream,
    service: ServiceDep,
    redis: RedisDep,
    last_event_id: Annotated[EntryId | None, Header(description="Go on after this entry")] = None,
) -> str:
    """After which entry to begin: asked for before the answer begins, so that a Redis that is down is a 503."""
    if service.tails >= TAILS_MAX:
        raise Problem("busy", f"{TAILS_MAX} clients follow streams already")
    if last_event_id is not None:
        return last_event_id
    try:
        info = await redis.xinfo_stream(stream)
    except ResponseError as error:
        if "no such key" not in str(error):
            raise
        return _FIRST_ID
    last: bytes = info["last-generated-id"]
    return last.decode()


@router.get(
    "/{stream:path}/tail",
    operation_id="tail",
    summary="Follow a stream",
    response_class=EventSourceResponse,
    responses=problems("invalid", "wrong-type", "redis-unavailable", "busy"),
)
async def tail(
    stream: Stream, service: ServiceDep, after: Annotated[str, Depends(_begin)]
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: what is published from now on, or after Last-Event-ID. The data is `{"id", "fields"}`."""
    service.tails += 1
    try:
        yield ServerSentEvent(retry=RETRY_MS, comment="following")
        async with contextlib.aclosing(_entries(service, stream, after)) as entries:
            async for entry, fields in entries:
                message = as_message(entry, fields)
                yield ServerSentEvent(id=message["id"], raw_data=orjson.dumps(message).decode())
    finally:
        service.tails -= 1


async def _entries(service: Service, stream: str, after: str) -> AsyncGenerator[tuple[bytes, dict[bytes, bytes]], None]:
    redis = client(service.url, timeout_s=_CLIENT_LIMIT_S, connect_timeout_s=service.limit_s)
    stopping = asyncio.create_task(service.stopping.wait())
    failures = 0
    try:
        while not service.stopping.is_set():
            try:
                rows = await _read(redis, stream, after, stopping)
            except (RedisError, OSError):
                await asyncio.wait([stopping], timeout=BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                failures += 1
                continue
            failures = 0
            for entry, fields in rows:
                yield entry, fields
                after = entry.decode()
    finally:
        stopping.cancel()
        await redis.aclose()


async def _read(redis: Redis, stream: str, after: str, stopping: asyncio.Task[Any]) -> list[Any]:
    """The next entries; none when none came or the service stops. A read outside of a group may be cancelled."""
    reads: Any = redis.xread({stream: after}, count=COUNT, block=BLOCK_MS)
    reading: asyncio.Task[Any] = asyncio.create_task(reads)
    try:
        await asyncio.wait([reading, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            return []
        reply = reading.result()
        return reply[0][1] if reply else []
    finally:
        if not reading.done():
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
