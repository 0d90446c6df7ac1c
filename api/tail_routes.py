"""Follows a stream: server-sent events from now on, or after the last event that the client saw.

Each tail has its own connection. It survives an outage of Redis and ends when the service stops, so that an open
browser never delays a shutdown.

It is one coroutine that writes to the socket. FastAPI's own event streams use a task group, which logs a traceback
whenever a client leaves while data is being sent to it.
"""

import asyncio
import time
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header
from fastapi.responses import StreamingResponse
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from starlette.types import Receive, Scope, Send

from supervisor.broker.connect import client
from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.fastapi import RedisDep

from .message_routes import as_message
from .pages import Stride
from .problems import Problem
from .read_route import ReadRoute
from .schemas import EntryId, Stream, problems, text_answer
from .service import Service, ServiceDep

router = APIRouter(prefix="/v1/streams", tags=["streams"], route_class=ReadRoute)
#: Each tail has a connection to Redis.
TAILS_MAX = 100
BLOCK_MS = 5_000
COUNT = 100
#: How long a browser waits before it reconnects, and this service before it reconnects to Redis.
RETRY_MS = 2_000
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
#: Proxies close connections that are silent for long.
PING_S = 15.0
_CLIENT_LIMIT_S = BLOCK_MS / 1000 + 3
_CANCEL_AGAIN_S = 0.05
_FIRST_ID = "0-0"
_MEDIA_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_EXAMPLE = 'id: 1764000000000-0\ndata: {"id":"1764000000000-0","fields":{"user_id":"1"}}\n\n'


async def _begin(
    stream: Stream,
    redis: RedisDep,
    last_event_id: Annotated[EntryId | None, Header(description="Continue after this entry")] = None,
) -> str:
    """Return the entry to begin after. It is read before the answer begins, so that an outage of Redis is a 503."""
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
    "/{stream:name}/tail",
    summary="Follow a stream",
    response_class=StreamingResponse,
    responses={
        200: text_answer(_MEDIA_TYPE, _EXAMPLE),
        **problems("invalid", "wrong-type", "redis-unavailable", "busy"),
    },
)
async def tail(stream: Stream, service: ServiceDep, after: Annotated[str, Depends(_begin)]) -> StreamingResponse:
    """Server-sent events with the data `{"id", "fields"}`: messages published from now on, or after Last-Event-ID."""
    # Nothing may be awaited between this check and the count.
    if service.tails >= TAILS_MAX:
        raise Problem("busy", f"{TAILS_MAX} clients already follow streams")
    return _Tail(service, stream, after)


class _Tail(StreamingResponse):
    def __init__(self, service: Service, stream: str, after: str) -> None:
        super().__init__((), headers=_HEADERS, media_type=_MEDIA_TYPE)
        self._service = service
        self._stream = stream
        self._after = after
        service.tails += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client leaves or the service stops."""
        service = self._service
        ends = [asyncio.create_task(_left(receive)), asyncio.create_task(service.stopping.wait())]
        redis = client(service.url, timeout_s=_CLIENT_LIMIT_S, connect_timeout_s=service.limit_s)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _write(send, f"retry: {RETRY_MS}\n: following\n\n")
            await self._follow(redis, send, ends)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            service.tails -= 1
            for end in ends:
                end.cancel()
            await redis.aclose()

    async def _follow(self, redis: Redis, send: Send, ends: list[asyncio.Task[Any]]) -> None:
        failures = 0
        stride = Stride(COUNT)
        sent_s = time.monotonic()
        while not any(end.done() for end in ends):
            rows: list[Any] = []
            try:
                rows = await _read(redis, self._stream, self._after, stride.count, ends)
                failures = 0
            except REDIS_FAULTS:
                await asyncio.wait(
                    ends, timeout=BACKOFF_S[min(failures, len(BACKOFF_S) - 1)], return_when=asyncio.FIRST_COMPLETED
                )
                failures += 1
            if rows:
                stride.adapt(rows)
                messages = [as_message(entry, fields) for entry, fields in rows]
                await _write(send, "".join(f"id: {m['id']}\ndata: {orjson.dumps(m).decode()}\n\n" for m in messages))
                self._after = messages[-1]["id"]
            elif time.monotonic() - sent_s >= PING_S:
                await _write(send, ": ping\n\n")
            else:
                continue
            sent_s = time.monotonic()


async def _write(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _left(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(redis: Redis, stream: str, after: str, count: int, ends: list[asyncio.Task[Any]]) -> list[Any]:
    """Read the next entries; none on a timeout or at the end. XREAD may be cancelled, since it claims no message."""
    reads: Any = redis.xread({stream: after}, count=count, block=BLOCK_MS)
    reading: asyncio.Task[Any] = asyncio.create_task(reads)
    try:
        await asyncio.wait([reading, *ends], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            return []
        reply = reading.result()
        return reply[0][1] if reply else []
    finally:
        while not reading.done():  # redis-py may swallow a cancellation while it connects
            reading.cancel()
            await asyncio.wait([reading], timeout=_CANCEL_AGAIN_S)
        if not reading.cancelled():
            reading.exception()
