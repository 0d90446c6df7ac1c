"""Routes of the hot path: described in OpenAPI like FastAPI's routes, and served like plain Starlette routes.

FastAPI's dependencies and validation cost half of a publish. A plain route's endpoint takes the request and reads the
parameters and the body itself, so its description lists them.
"""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .known_query import check_query

_METHOD = "POST"
Endpoint = Callable[[Request], Awaitable[Response]]


class PlainRoute(APIRoute):
    """Calls its endpoint with the request, whose query it has checked, and nothing in between."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request whose path matches."""
        if scope["method"] != _METHOD:
            await super().handle(scope, receive, send)  # answers 405
            return
        request = Request(scope, receive)
        if scope["query_string"]:
            check_query(request, self)
        response: Response = await self.endpoint(request)
        await response(scope, receive, send)


def plain_post(path: str, endpoint: Endpoint, *, tag: str, summary: str, **description: Any) -> PlainRoute:
    """Return a route that answers 202; `description` has APIRoute's arguments, such as `responses`."""
    return PlainRoute(
        path,
        endpoint,
        methods=[_METHOD],
        status_code=HTTPStatus.ACCEPTED,
        tags=[tag],
        summary=summary,
        operation_id=endpoint.__name__,
        **description,
    )


async def read_body(request: Request) -> bytes:
    """Return the whole body. Raises ClientDisconnect when the client leaves before it has sent all of it."""
    receive = request.receive
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        if not message.get("more_body", False):
            return piece if not pieces else b"".join((*pieces, piece))
        pieces.append(piece)
