"""What requests and answers look like: stream names, ids, bodies, and their description in OpenAPI."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import quote

import orjson
from fastapi import Path, Request
from fastapi.responses import Response
from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from supervisor.core.ids import normalize_id

from .problems import KINDS, MEDIA_TYPE, Problem

STREAM_CHARACTERS_MAX = 512
#: And halves of surrogate pairs, which have no UTF-8.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_ID = "[0-9]{1,20}(-[0-9]{1,20})?"
#: Names that are the supervisor's own: dead letters and the like are not to be written by clients.
_OWN_PREFIX = "supervisor:"
EXAMPLE_ID = "1764000000000-0"


def check_name(name: str) -> str:
    """The name of a stream or a group. Raises a validation error."""
    if not name or len(name) > STREAM_CHARACTERS_MAX or _CONTROL.search(name):
        raise PydanticCustomError(
            "stream_name", "a name has 1 to {most} characters, none a control character", {"most": 512}
        )
    return name


def _writable(name: str) -> str:
    if name.startswith(_OWN_PREFIX):
        raise PydanticCustomError("stream_reserved", "names that begin with supervisor: are reserved")
    return check_name(name)


def check_id(text: str) -> str:
    """An entry's id, `-0` added where the sequence is missing. Raises a validation error."""
    try:
        return normalize_id(text)
    except ValueError:
        raise PydanticCustomError("entry_id", "an entry's id looks like 1764000000000-0") from None


def check_bound(text: str) -> str:
    """An end of a range, as XRANGE takes it: `-`, `+`, an id, or `(` and an id to leave that one out."""
    if text in ("-", "+"):
        return text
    digits = text.removeprefix("(")
    with_sequence = check_id(digits)
    return text if digits == text else f"({with_sequence}"


_NAME = Path(description="The stream's name")
_GROUP = Path(description="The group's name")
#: What check_name says, for who reads the description.
_NAMES = {"type": "string", "minLength": 1, "maxLength": STREAM_CHARACTERS_MAX, "pattern": "^[^\\x00-\\x1f\\x7f]*$"}
NAME_SCHEMA = WithJsonSchema(_NAMES)
_STREAM_SCHEMA = WithJsonSchema(_NAMES | {"examples": ["events:user_created"]})
_GROUP_SCHEMA = WithJsonSchema(_NAMES | {"examples": ["email_workers"]})
Stream = Annotated[str, _NAME, AfterValidator(check_name), _STREAM_SCHEMA]
WritableStream = Annotated[str, _NAME, AfterValidator(_writable), _STREAM_SCHEMA]
Group = Annotated[str, _GROUP, AfterValidator(check_name), _GROUP_SCHEMA]
EntryId = Annotated[str, AfterValidator(check_id), WithJsonSchema({"type": "string", "pattern": f"^{_ID}$"})]
Bound = Annotated[
    str, AfterValidator(check_bound), WithJsonSchema({"type": "string", "pattern": rf"^([-+]|\(?{_ID})$"})
]


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON without FastAPI's detour over its own encoder: a third of a request's time."""
    return Response(orjson.dumps(body), status, headers, "application/json")


def stream_path(stream: str) -> str:
    """The address of what belongs to a stream."""
    return f"/v1/streams/{quote(stream, safe=':')}"


def messages_path(stream: str) -> str:
    """The address of a stream's messages."""
    return f"{stream_path(stream)}/messages"


async def only_json(request: Request) -> None:
    """For routes whose body FastAPI reads. Raises Problem: 415 for another type."""
    check_media_type(request, "application/json")


async def read_json(request: Request) -> Any:
    """The body. Raises Problem: 415 for another type, 400 for what is no JSON."""
    check_media_type(request, "application/json")
    return parse_json(await request.body())


def parse_json(body: bytes) -> Any:
    """Raises Problem for what is no JSON."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem("malformed-json", str(error)) from None


def check_media_type(request: Request, *allowed: str) -> str:
    """The request's media type. Raises Problem (415) when it is none of the allowed."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in allowed:
        raise Problem("media-type", f"Content-Type must be {' or '.join(allowed)}, not {media_type or 'missing'}")
    return media_type


def problems(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with problems of these kinds."""
    found: dict[int | str, dict[str, Any]] = {}
    for name in (*kinds, "unauthorized", "internal"):
        kind = KINDS[name]
        entry = found.setdefault(kind.status, {"description": kind.title, "content": {MEDIA_TYPE: _PROBLEM}})
        if kind.title not in entry["description"]:
            entry["description"] += f"; {kind.title}"
        if kind.status == KINDS["redis-unavailable"].status:
            entry["headers"] = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
    return found


def json_body(schema: dict[str, Any], example: Any, **others: dict[str, Any]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its body itself."""
    content = {"application/json": {"schema": schema, "example": example}, **others}
    return {"requestBody": {"required": True, "content": content}}


_PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}
PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457 problem details",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "description": "The address of a page about this kind of problem"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string", "description": "For programs: the kind, or Redis's own word"},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "A JSON pointer into the body, as a URI fragment"},
                    "parameter": {"type": "string", "description": "The name of a parameter"},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}
