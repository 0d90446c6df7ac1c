"""Publish messages and read the history of a stream.

A message is a flat JSON object. Its members become the fields of the entry: strings unchanged, all other values as
JSON text. In an object with the single member `fields`, that member is the message.
"""

import re
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from supervisor.core.encode import encode_fields
from supervisor.errors import EncodeError
from supervisor.fastapi import RedisDep
from supervisor.publisher import BATCH_MAX, KEY_BYTES_MAX, Publisher

from .plain_route import plain_post, read_body
from .problems import Problem, pointer_of
from .schemas import (
    EXAMPLE_ID,
    STREAM_PARAMETER,
    Bound,
    EntryId,
    Stream,
    answers,
    check_media_type,
    json_body,
    json_response,
    messages_path,
    parse_json,
    problems,
    writable_stream,
)

router = APIRouter(prefix="/v1/streams", tags=["streams"])
NDJSON = "application/x-ndjson"
COUNT_MAX = 1_000
_EXAMPLE = {"user_id": 1, "email": "ada@example.com"}
_MESSAGE = {"type": "object", "minProperties": 1, "additionalProperties": True, "description": str(__doc__)}
_STORED = ("malformed-json", "wrong-type", "body-too-large", "media-type", "invalid", "redis-unavailable")
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_KEY_HEADER = "Idempotency-Key"
#: The parameters of both ways to publish.
_PARAMETERS = [
    STREAM_PARAMETER,
    {
        "name": _KEY_HEADER,
        "in": "header",
        "required": False,
        "description": "A message is stored once in 24 h under the same key, however often it is sent.",
        "schema": {"type": "string"},
        "example": '"8e03978e-40d5-43e8-bc93-6894a57f9324"',
    },
]


def _accepted(description: str, example: dict[str, Any], *, location: bool) -> dict[int | str, dict[str, Any]]:
    headers = {
        "Idempotency-Replayed": {"description": "true: the message was stored before", "schema": {"type": "string"}}
    }
    if location:
        headers["Location"] = {"description": "The address of the message", "schema": {"type": "string"}}
    return {
        202: {"description": description, "headers": headers, "content": {"application/json": {"example": example}}}
    }


async def publish(request: Request) -> Response:
    """202: Redis has stored the message."""
    stream = writable_stream(request)
    key = _key(request.headers.get(_KEY_HEADER))
    check_media_type(request, "application/json")
    message = _unwrap(parse_json(await read_body(request)), "")
    published = await _publisher(request).publish(stream, message, key=key)
    headers = {"Location": f"{messages_path(stream)}/{published.id}"}
    if published.replayed:
        headers["Idempotency-Replayed"] = "true"
    return json_response({"id": published.id, "stream": stream}, 202, headers)


async def publish_batch(request: Request) -> Response:
    """The body is a JSON array, or one object a line (application/x-ndjson). All are stored, or none."""
    stream = writable_stream(request)
    key = _key(request.headers.get(_KEY_HEADER))
    media_type = check_media_type(request, "application/json", NDJSON)
    body = await read_body(request)
    messages = _lines(body) if media_type == NDJSON else _array(body)
    if len(messages) > BATCH_MAX:
        raise Problem("invalid", f"{len(messages)} messages; at most {BATCH_MAX} are allowed at once")
    ids, replayed = await _publisher(request).publish_batch(stream, messages, key=key)
    headers = {"Idempotency-Replayed": "true"} if replayed else {}
    return json_response({"stream": stream, "ids": ids, "count": len(ids)}, 202, headers)


#: Come before all other routes.
plain_routes = (
    plain_post(
        "/v1/streams/{stream:name}/messages",
        publish,
        tag="streams",
        summary="Publish a message",
        responses=_accepted("Stored", {"id": EXAMPLE_ID, "stream": "events:user_created"}, location=True)
        | problems(*_STORED, "bad-request"),
        openapi_extra={"parameters": _PARAMETERS, **json_body(_MESSAGE, _EXAMPLE)},
    ),
    plain_post(
        "/v1/streams/{stream:name}/messages:batch",
        publish_batch,
        tag="streams",
        summary="Publish many messages",
        responses=_accepted(
            "All stored, in order", {"stream": "events:user_created", "ids": [EXAMPLE_ID], "count": 1}, location=False
        )
        | problems(*_STORED, "bad-request"),
        openapi_extra={
            "parameters": _PARAMETERS,
            **json_body(
                {"type": "array", "items": _MESSAGE, "maxItems": BATCH_MAX},
                [_EXAMPLE],
                **{NDJSON: {"schema": {"type": "string"}, "example": '{"user_id": 1}\n{"user_id": 2}\n'}},
            ),
        },
    ),
)


@router.get(
    "/{stream:name}/messages",
    summary="Read a range of history",
    responses=answers({"messages": [], "next": None}, "invalid", "wrong-type", "redis-unavailable"),
)
async def read_messages(
    stream: Stream,
    redis: RedisDep,
    start: Annotated[Bound, Query(description="First id; `(` before it excludes it")] = "-",
    end: Annotated[Bound, Query(description="Last id; `(` before it excludes it")] = "+",
    count: Annotated[int, Query(ge=1, le=COUNT_MAX)] = 100,
    reverse: Annotated[bool, Query(description="Newest first")] = False,
) -> Response:
    """`next` is the address of the next page, null after the last one. A stream that does not exist is empty."""
    rows: Any
    if reverse:
        rows = await redis.xrevrange(stream, max=end, min=start, count=count + 1)
    else:
        rows = await redis.xrange(stream, min=start, max=end, count=count + 1)
    messages = [as_message(entry, fields) for entry, fields in rows[:count]]
    following = None
    if len(rows) > count:
        last = f"({messages[-1]['id']}"
        bounds = {"start": start, "end": last} if reverse else {"start": last, "end": end}
        query = urlencode({**bounds, "count": count, "reverse": str(reverse).lower()})
        following = f"{messages_path(stream)}?{query}"
    return json_response({"messages": messages, "next": following})


@router.get(
    "/{stream:name}/messages/{entry_id}",
    summary="Read one message",
    responses=answers(
        {"id": EXAMPLE_ID, "fields": {"user_id": "1"}}, "not-found", "invalid", "wrong-type", "redis-unavailable"
    ),
)
async def read_message(stream: Stream, entry_id: EntryId, redis: RedisDep) -> Response:
    """`entry_id` is the id that publishing returned."""
    rows: Any = await redis.xrange(stream, min=entry_id, max=entry_id)
    if not rows:
        raise Problem("not-found", f"stream {stream!r} has no entry {entry_id}")
    return json_response(as_message(*rows[0]))


def as_message(entry: bytes, fields: dict[bytes, bytes]) -> dict[str, Any]:
    """Return an entry for JSON; bytes that are not UTF-8 become \\xNN."""
    shown = {
        name.decode(errors="backslashreplace"): value.decode(errors="backslashreplace")
        for name, value in fields.items()
    }
    return {"id": entry.decode(), "fields": shown}


def _publisher(request: Request) -> Publisher:
    found: Publisher = request.app.state.supervisor.publisher
    return found


def _unwrap(body: Any, place: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise Problem("invalid", f"{place}a message must be a JSON object, not {_kind(body)}")
    inner = body.get("fields")
    return inner if len(body) == 1 and isinstance(inner, dict) else body


def _key(header: str | None) -> str | None:
    """Return the key in an RFC 8941 string, with or without quotes."""
    if header is None:
        return None
    quoted = _QUOTED.fullmatch(header.strip())
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else header.strip()
    if not key or len(key.encode()) > KEY_BYTES_MAX or not key.isprintable():
        raise Problem("bad-request", f"Idempotency-Key must have 1 to {KEY_BYTES_MAX} printable characters")
    return key


def _array(body: bytes) -> list[dict[str, str]]:
    items = parse_json(body)
    if not isinstance(items, list):
        raise Problem(
            "invalid", f"a batch must be a JSON array, not {_kind(items)}; use {NDJSON} for one object a line"
        )
    return [_encoded(item, f"message {index}: ", index) for index, item in enumerate(items)]


def _lines(body: bytes) -> list[dict[str, str]]:
    found: list[Any] = []
    for number, line in enumerate(body.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            item = parse_json(line)
        except Problem as problem:
            raise Problem("malformed-json", f"line {number}: {problem.detail}") from None
        found.append(_encoded(item, f"line {number}: ", len(found)))
    return found


def _encoded(item: Any, place: str, index: int) -> dict[str, str]:
    try:
        return encode_fields(_unwrap(item, place))
    except (EncodeError, Problem) as error:
        text = error.detail if isinstance(error, Problem) else f"{place}{error}"
        path = [index] if getattr(error, "field", None) is None else [index, getattr(error, "field", "")]
        raise Problem("invalid", text, errors=[{"pointer": pointer_of(*path), "detail": text}]) from None


def _kind(value: object) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
