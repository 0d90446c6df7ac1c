"""Server-sent events: an answer that goes on until its client leaves, its token is changed or the service stops.

Only one task writes to the socket at a time. FastAPI's own event streams use a task group, which logs a traceback
whenever a client leaves while data is being sent to it.
"""

import asyncio

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from supervisor.broker.cancelling import cancel, wait_at_most

from .problems import Problem
from .service import Service

MEDIA_TYPE = "text/event-stream"
#: How long a browser waits before it reconnects.
RETRY_MS = 2_000
#: The role of a client is looked at this often.
_ROLE_EVERY_S = 1.0
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """Events for one client. `[api] max_tails` limits how many there are."""

    def __init__(self, service: Service) -> None:
        """Raises Problem when there are too many. Nothing may be awaited before the answer begins."""
        limit = service.settings.api.max_tails
        if service.tails >= limit:
            raise Problem("busy", f"{service.tails} clients already follow events; [api] max_tails = {limit}")
        super().__init__((), headers=_HEADERS, media_type=MEDIA_TYPE)
        self.service = service
        service.tails += 1

    async def follow(self, scope: Scope, send: Send) -> None:
        """Send events with `write_events` until cancelled; the stream ends when this returns."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client leaves, its role changes, the service stops, or `follow` returns."""
        service = self.service
        ends = [asyncio.create_task(_left(receive)), asyncio.create_task(_refused(scope, service.stopping))]
        following: asyncio.Task[None] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await write_events(send, b"retry: %d\n: following\n\n" % RETRY_MS)
            following = asyncio.create_task(self.follow(scope, send))
            await asyncio.wait([following, *ends], return_when=asyncio.FIRST_COMPLETED)
            await cancel(following)
            if not following.cancelled():
                following.result()  # raises what it has failed with
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            service.tails -= 1
            await cancel(*ends, *([following] if following else []))


async def write_events(send: Send, data: bytes) -> None:
    """Send a part of the stream."""
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _left(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refused(scope: Scope, stopping: asyncio.Event) -> None:
    """Return when the service stops, or the client's token has another role or none, since its file was changed."""
    while not stopping.is_set() and scope["role_now"]() == scope["role"]:
        await wait_at_most(_ROLE_EVERY_S, stopping)
