"""Refuses bodies that a route would misread: one that it does not take, and JSON that names a member twice.

The first would be ignored. Of two members with one name, the first would count as left out.
"""

from email.message import Message

from fastapi import Depends, Request
from fastapi.requests import HTTPConnection

from .json_body import check_json
from .known_query import only_known
from .problems import Problem

_NONE_TAKEN = "this address takes no body"


async def only_wanted_body(request: Request) -> None:
    """Check the body of a request to a route of the service, as a dependency of the route. Raises Problem."""
    if request.scope["route"].body_field is not None:
        await no_member_twice(request)
        return
    async for piece in request.stream():
        if piece:
            raise Problem("invalid", _NONE_TAKEN, errors=[{"pointer": "#", "detail": _NONE_TAKEN}])


async def no_member_twice(connection: HTTPConnection) -> None:
    """Check JSON that FastAPI reads as the body of a route, as a dependency of the route. Raises Problem.

    FastAPI has read it before, with a parser that takes the last of such members. A WebSocket has no body.
    """
    if isinstance(connection, Request) and connection.scope["route"].body_field is not None and _is_json(connection):
        await check_json(await connection.body())


def _is_json(request: Request) -> bool:
    """Return whether FastAPI takes the body for JSON."""
    message = Message()
    message["content-type"] = request.headers.get("content-type", "text/plain")
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


#: What each route below /v1 refuses: parameters that it does not have, and bodies that it would misread.
STRICT = (Depends(only_known), Depends(only_wanted_body))
