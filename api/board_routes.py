"""The state of the pool as server-sent events: what the dashboard shows."""

import asyncio
from datetime import UTC, datetime

import orjson
from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from starlette.types import Scope, Send

from .event_stream import MEDIA_TYPE, EventStream, write_events
from .schemas import problems, text_answer
from .service import ServiceDep
from .status_routes import seen_from_here

router = APIRouter(prefix="/v1", tags=["status"])
EVERY_S = 1.0


@router.get(
    "/board",
    summary="Follow the state of pool, workers and groups",
    response_class=StreamingResponse,
    responses={
        200: text_answer(MEDIA_TYPE, 'data: {"at":"2025-11-24T16:00:00.000Z","role":"local","status":{}}\n\n'),
        **problems("invalid", "busy"),
    },
)
async def board(service: ServiceDep) -> StreamingResponse:
    """Server-sent events, one a second, with the data `{"at", "role", "status"}`.

    `status` is the document of `/health`. `role` says what the client's token allows: `operator`, `reader`, or `local`
    where the service has no token.
    """
    return _Board(service)


class _Board(EventStream):
    async def follow(self, scope: Scope, send: Send) -> None:
        """Send the state until cancelled. It is a snapshot for all clients: each costs Redis and the pool nothing."""
        while True:
            status = seen_from_here(self.service, await self.service.state())
            at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            event = orjson.dumps({"at": at, "role": scope["role"], "status": status})
            await write_events(send, b"data: %b\n\n" % event)
            await asyncio.sleep(EVERY_S)
