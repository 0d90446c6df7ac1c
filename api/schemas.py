"""The forms of requests and answers: stream names, ids, bodies, and their description in OpenAPI."""

import re
from typing import Annotated, Any
from urllib.parse import quote

import orjson
from fastapi import Path, Request
from fastapi.responses import Response
from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.convertors import register_url_convertor

from supervisor.core.ids import normalize_id
from supervisor.core.json_text import parse_exact

from .problems import KINDS, MEDIA_TYPE, Problem
from .root_path import link
from .stream_paths import IdConvertor, NameConvertor

STREAM_CHARACTERS_MAX = 512
#: The most entries, dead letters or messages that one answer lists.
COUNT_MAX = 1_000
#: Control characters, and halves of surrogate pairs, which have no UTF-8.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
#: RFC 3986, 5.2.4: dot segments are removed from an address, even when the dots are percent-encoded.
_DOTS = frozenset({".", ".."})
#: A part may also have 20 digits, up to 18446744073709551615.
_ID = "[0-9]{1,19}(-[0-9]{1,19})?"
#: Reserved for keys such as those of dead letters, which clients must not write.
_OWN_PREFIX = "supervisor:"
#: For answers that no proxy may keep.
NO_CACHE = {"Cache-Control": "no-store"}


def check_name(name: str) -> str:
    """Check the name of a stream or group. Raises a validation error."""
    if not name or len(name) > STREAM_CHARACTERS_MAX or _CONTROL.search(name):
        raise PydanticCustomError(
            "stream_name",
            "a name has 1 to {most} characters and no control characters",
            {"most": STREAM_CHARACTERS_MAX},
        )
    if not _DOTS.isdisjoint(name.split("/")):
        raise PydanticCustomError(
            "stream_name", "a name has no part . or .. between slashes, since clients remove these from an address"
        )
    return name


def check_id(text: str) -> str:
    """Return an entry's id; `-0` is added where the sequence is missing. Raises a validation error."""
    try:
        return normalize_id(text)
    except ValueError:
        raise PydanticCustomError("entry_id", "an entry's id looks like 1764000000000-0") from None


def check_bound(text: str) -> str:
    """Check an end of a range as XRANGE takes it: `-`, `+`, an id, or `(` and an id to exclude it."""
    if text in ("-", "+"):
        return text
    digits = text.removeprefix("(")
    with_sequence = check_id(digits)
    return text if digits == text else f"({with_sequence}"


register_url_convertor("name", NameConvertor())
register_url_convertor("id", IdConvertor())
_NAME = Path(description="The stream's name")
_GROUP = Path(description="The group's name")
#: The rules of `check_name`, for the description.
_NAMES: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": STREAM_CHARACTERS_MAX,
    "pattern": "^[^\\x00-\\x1f\\x7f]*$",
    "not": {"pattern": r"(^|/)\.{1,2}(/|$)"},
}
_STREAM_NAMES = _NAMES | {"examples": ["events:user_created"]}
_STREAM_SCHEMA = WithJsonSchema(_STREAM_NAMES)
_GROUP_SCHEMA = WithJsonSchema(_NAMES | {"examples": ["email_workers"]})
Stream = Annotated[str, _NAME, AfterValidator(check_name), _STREAM_SCHEMA]
Group = Annotated[str, _GROUP, AfterValidator(check_name), _GROUP_SCHEMA]
#: One in a query or a body.
Name = Annotated[str, AfterValidator(check_name), WithJsonSchema(_NAMES)]
EntryId = Annotated[str, AfterValidator(check_id), WithJsonSchema({"type": "string", "pattern": f"^{_ID}$"})]
Bound = Annotated[
    str, AfterValidator(check_bound), WithJsonSchema({"type": "string", "pattern": rf"^([-+]|\(?{_ID})$"})
]


#: The stream in the path of a plain route, which reads it with `writable_stream`.
STREAM_PARAMETER = {
    "name": "stream",
    "in": "path",
    "required": True,
    "description": "The stream's name",
    "schema": _STREAM_NAMES,
}


def writable_stream(request: Request) -> str:
    """Return the stream in the request's path. Raises Problem when clients must not publish to it."""
    name: str = request.path_params["stream"]
    try:
        if name.startswith(_OWN_PREFIX):
            raise PydanticCustomError("stream_reserved", "names that begin with supervisor: are reserved")
        return check_name(name)
    except PydanticCustomError as error:
        text = error.message()
        raise Problem("invalid", text, errors=[{"parameter": "stream", "detail": text}]) from None


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with JSON; FastAPI's own encoder would take a third of a request's time."""
    return Response(orjson.dumps(body), status, headers, "application/json")


def stream_path(stream: str) -> str:
    """Return the address under which everything of a stream is."""
    return link(f"/v1/streams/{quote(stream, safe=':')}")


def messages_path(stream: str) -> str:
    """Return the address of a stream's messages."""
    return f"{stream_path(stream)}/messages"


async def only_json(request: Request) -> None:
    """Check the media type of a route whose body FastAPI reads. Raises Problem (415)."""
    check_media_type(request, "application/json")


def parse_json(body: bytes) -> Any:
    """Parse JSON with exact numbers. Raises Problem when it is not valid."""
    try:
        return parse_exact(body)
    except (ValueError, RecursionError) as error:
        raise Problem("malformed-json", str(error)) from None


def check_media_type(request: Request, *allowed: str) -> str:
    """Return the request's media type. Raises Problem (415) when it is not allowed."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in allowed:
        raise Problem("media-type", f"Content-Type must be {' or '.join(allowed)}, not {media_type or 'missing'}")
    return media_type


def problems(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may answer with these kinds of problems."""
    responses: dict[int | str, dict[str, Any]] = {}
    for name in (*kinds, *_ANYWHERE):
        kind = KINDS[name]
        entry = responses.setdefault(kind.status, {"description": kind.title, "content": PROBLEM_CONTENT})
        if kind.title not in entry["description"]:
            entry["description"] += f"; {kind.title}"
        entry.setdefault("x-problems", {})[name] = kind.title
        if kind.status in _HEADERS:
            entry["headers"] = _HEADERS[kind.status]
    return responses


def answers(model: Any, *kinds: str, status: int = 200, **more: Any) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that answers with JSON like `model`, or with these kinds of problems.

    `more` describes the answer with the model: its headers, an example.
    """
    return {status: {"model": model, **more}, **problems(*kinds)}


def text_answer(media_type: str, example: str, **more: Any) -> dict[str, Any]:
    """Return the description of an answer in text."""
    return {"content": {media_type: {"schema": {"type": "string"}, "example": example}}, **more}


def json_body(schema: dict[str, Any], example: Any, **others: Any) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that reads its body itself."""
    content = {"application/json": {"schema": schema, "example": example}, **others}
    return {"requestBody": {"required": True, "content": content}}


#: Problems that any route may answer with.
_ANYWHERE = ("bad-request", "unauthorized", "forbidden", "cross-site", "method-not-allowed", "internal")
_RETRY_AFTER = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer"}}}
_HEADERS = {
    401: {"WWW-Authenticate": {"description": "The scheme", "schema": {"type": "string"}}},
    405: {"Allow": {"description": "The methods of this address", "schema": {"type": "string"}}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
}
PROBLEM_CONTENT = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
PROBLEM_SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457 problem details",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "code", "request_id"],
    "properties": {
        "type": {
            "type": "string",
            "format": "uri",
            "description": "The address of a page about this kind of problem; about:blank where the status says it all",
        },
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "code": {"type": "string", "description": "For programs: the kind, or the error code of Redis"},
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
