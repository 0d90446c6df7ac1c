"""Follows a stream: server-sent events from now on, or after the last event that the client saw.

Each tail has its own connection. It survives an outage of Redis. It ends when Redis refuses to read the stream, with an
event that says why, and when the service stops, so that an open browser never delays a shutdown.

Only one task writes to the socket at a time. FastAPI's own event streams use a task group, which logs a traceback
whenever a client leaves while data is being sent to it.
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

from supervisor.broker.cancelling import cancel
from supervisor.broker.connect import client
from supervisor.broker.redis_errors import REDIS_FAULTS, UNREACHABLE, code_of, is_transient

from .message_routes import as_message
from .problems import Problem, document, of_error
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
#: How long a browser waits before it reconnects, and this service before it reconnects to Redis.
RETRY_MS = 2_000
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
#: Proxies close connections that are silent for long.
PING_S = 15.0
_CLIENT_LIMIT_S = BLOCK_MS / 1000 + 3
_FIRST_ID = "0-0"
_MEDIA_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
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
        200: text_answer(_MEDIA_TYPE, _EXAMPLE),
        **problems("invalid", "wrong-type", "redis-unavailable", "busy"),
    },
)
async def tail(stream: Stream, service: ServiceDep, after: Annotated[str, Depends(_begin)]) -> StreamingResponse:
    """Server-sent events with the data `{"id", "fields"}`: messages published from now on, or after Last-Event-ID.

    When Redis refuses to go on, the last event is `problem` and its data a problem document.
    """
    # Nothing may be awaited between this check and the count.
    limit = service.settings.api.max_tails
    if service.tails >= limit:
        raise Problem("busy", f"{service.tails} clients already follow streams; [api] max_tails = {limit}")
    return _Tail(service, stream, after)


class _Tail(StreamingResponse):
    def __init__(self, service: Service, stream: str, after: str) -> None:
        super().__init__((), headers=_HEADERS, media_type=_MEDIA_TYPE)
        self._service = service
        self._stream = stream
        self._after = after
        service.tails += 1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client leaves, the service stops, or Redis refuses to read the stream."""
        service = self._service
        ends = [asyncio.create_task(_left(receive)), asyncio.create_task(service.stopping.wait())]
        redis = client(service.url, timeout_s=_CLIENT_LIMIT_S, connect_timeout_s=service.limit_s)
        following: asyncio.Task[None] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _write(send, b"retry: %d\n: following\n\n" % RETRY_MS)
            following = asyncio.create_task(self._follow(redis, scope, send))
            await asyncio.wait([following, *ends], return_when=asyncio.FIRST_COMPLETED)
            await cancel(following)
            if not following.cancelled():
                following.result()  # raises what it has failed with
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            service.tails -= 1
            try:
                await cancel(*ends, *([following] if following else []))
            finally:
                await redis.aclose()

    async def _follow(self, redis: Redis, scope: Scope, send: Send) -> None:
        """Send events until it is cancelled or Redis refuses. A read may be cancelled, since it claims no message."""
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
                    await _write(send, b"event: problem\ndata: %b\n\n" % document(scope, of_error(error)))
                    return
                await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                failures += 1
            if rows:
                for events in _events(rows):
                    await _write(send, events)
                    await asyncio.sleep(0)
                self._after = rows[-1][0].decode()
            elif time.monotonic() - sent_s >= PING_S:
                await _write(send, b": ping\n\n")
            else:
                continue
            sent_s = time.monotonic()


def _passes(error: Exception) -> bool:
    """Return whether waiting may help: Redis is away, starts or fails over. All else is a refusal."""
    return code_of(error) == UNREACHABLE or is_transient(error)


async def _write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


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


async def _left(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _new(redis: Redis, stream: str, after: str) -> list[Row]:
    """Wait for the next entry and return it; none on a timeout. Only a page limits the bytes of several."""
    reply: Any = await redis.xread({stream: after}, count=1, block=BLOCK_MS)
    rows: list[Row] = reply[0][1] if reply else []
    return rows
