"""Follows a stream: server-sent events from now on, or after the last event that the client saw.

Each tail has its own connection. It survives an outage of Redis. It ends when Redis refuses to read the stream, with an
event that says why, and when the service stops, so that an open browser never delays a shutdown.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header
from fastapi.responses import StreamingResponse
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from starlette.types import Receive, Scope, Send

from supervisor.broker.connect import client
from supervisor.broker.redis_errors import REDIS_FAULTS, UNREACHABLE, code_of, is_transient

from .event_stream import MEDIA_TYPE, EventStream, write_events
from .message_routes import as_message
from .problems import document, of_error
from .read_route import ReadRoute
from .schemas import EntryId, Stream, problems, text_answer
from .service import Service, ServiceDep
from .stream_pages import Row, read_page


class _BeginRoute(ReadRoute):
    """Clients that come at once begin one after another."""

    extra_s = 2.0


router = APIRouter(prefix="/v1/streams", tags=["streams"], route_class=_BeginRoute)
BLOCK_MS = 5_000
#: Entries of one page of what is there already.
PAGE_MAX = 100
_PIECE_BYTES = 64 * 1024
#: How long the service waits before it reconnects to Redis.
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
#: Proxies close connections that are silent for long.
PING_S = 15.0
_CLIENT_LIMIT_S = BLOCK_MS / 1000 + 3
_FIRST_ID = "0-0"
_EXAMPLE = 'id: 1764000000000-0\ndata: {"id":"1764000000000-0","fields":{"user_id":"1"}}\n\n'


async def _begin(
    stream: Stream,
    service: ServiceDep,
    last_event_id: Annotated[EntryId | None, Header(description="Continue after this entry")] = None,
) -> str:
    """Return the entry to begin after. Redis is asked before the answer begins, so that an outage of it is a 503.

    A client that comes back waits for the end of an outage, as it would have if it had stayed: browsers don't come
    again after a 503.
    """
    try:
        async with asyncio.timeout(None if last_event_id is None else service.limit_s), service.tail_starts:
            info = await service.redis.xinfo_stream(stream)
    except REDIS_FAULTS as error:
        if isinstance(error, ResponseError) and "no such key" in str(error):
            return last_event_id or _FIRST_ID
        if last_event_id is None or not _passes(error):
            raise
        return last_event_id
    last: bytes = info["last-generated-id"]
    return last_event_id or last.decode()


@router.get(
    "/{stream:name}/tail",
    summary="Follow a stream",
    response_class=StreamingResponse,
    responses={
        200: text_answer(MEDIA_TYPE, _EXAMPLE),
        **problems("invalid", "wrong-type", "redis-unavailable", "busy"),
    },
)
async def tail(stream: Stream, service: ServiceDep, after: Annotated[str, Depends(_begin)]) -> StreamingResponse:
    """Server-sent events with the data `{"id", "fields"}`: messages published from now on, or after Last-Event-ID.

    When Redis refuses to go on, the last event is `problem` and its data a problem document.
    """
    return _Tail(service, stream, after)


class _Tail(EventStream):
    def __init__(self, service: Service, stream: str, after: str) -> None:
        super().__init__(service)
        self._stream = stream
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream's entries."""
        service = self.service
        self._redis = client(service.url, timeout_s=_CLIENT_LIMIT_S, connect_timeout_s=service.limit_s)
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._redis.aclose()

    async def follow(self, scope: Scope, send: Send) -> None:
        """Send events until it is cancelled or Redis refuses. A read may be cancelled, since it claims no message."""
        redis = self._redis
        failures = 0
        behind = True
        sent_s = time.monotonic()
        while True:
            rows: list[Row] = []
            try:
                if behind:
                    rows, behind = await read_page(redis, self._stream, f"({self._after}", "+", PAGE_MAX)
                else:
                    rows = await _new(redis, self._stream, self._after)
                    behind = bool(rows)
                failures = 0
            except REDIS_FAULTS as error:
                if not _passes(error):
                    # Not `error`: a browser's EventSource has an event of that name for lost connections.
                    await write_events(send, b"event: problem\ndata: %b\n\n" % document(scope, of_error(error)))
                    return
                await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                failures += 1
            if rows:
                for events in _events(rows):
                    await write_events(send, events)
                    await asyncio.sleep(0)
                self._after = rows[-1][0].decode()
            elif time.monotonic() - sent_s >= PING_S:
                await write_events(send, b": ping\n\n")
            else:
                continue
            sent_s = time.monotonic()


def _passes(error: Exception) -> bool:
    """Return whether waiting may help: Redis is away, starts or fails over. All else is a refusal."""
    return code_of(error) == UNREACHABLE or is_transient(error)


def _events(rows: Iterable[Row]) -> Iterator[bytes]:
    """Yield the events of entries, in pieces of moderate size where the entries allow it."""
    piece = b""
    for entry, fields in rows:
        piece += b"id: %b\ndata: %b\n\n" % (entry, orjson.dumps(as_message(entry, fields)))
        if len(piece) > _PIECE_BYTES:
            yield piece
            piece = b""
    if piece:
        yield piece


async def _new(redis: Redis, stream: str, after: str) -> list[Row]:
    """Wait for the next entry and return it; none on a timeout. Only a page limits the bytes of several."""
    reply: Any = await redis.xread({stream: after}, count=1, block=BLOCK_MS)
    rows: list[Row] = reply[0][1] if reply else []
    return rows
