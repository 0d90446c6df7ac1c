"""Publish messages and read the history of a stream.

A message is a flat JSON object. Its members become the fields of the entry: strings unchanged, all other values as
JSON text. In an object with the single member `fields`, that member is the message.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from supervisor.core.confirmation import Confirmation
from supervisor.core.encode import FIELDS_MAX
from supervisor.core.ids import time_of_id
from supervisor.fastapi import IDEMPOTENCY_KEY_PATTERN, get_idempotency_key
from supervisor.publisher import BATCH_MAX, KEY_BYTES_MAX
from supervisor.text import decoded
from supervisor.values import SECONDS_MAX

from . import cloud_events
from .admission import check_allowed, check_limits, has_limits
from .later_replies import StoredLater, StoredLaterBatch
from .later_routes import parse_time
from .message_input import NDJSON, Input, read_many, read_one
from .plain_route import plain_post
from .problems import Problem
from .replies import MessagePage, Stored, StoredBatch, StoredMessage
from .schemas import (
    COUNT_MAX,
    STREAM_PARAMETER,
    Bound,
    EntryId,
    Stream,
    answers,
    json_body,
    json_response,
    messages_path,
    stream_path,
    writable_stream,
)
from .service import Service, ServiceDep
from .stream_pages import read_page
from .tracing import trace_fields
from .validation import SLICE

router = APIRouter(prefix="/v1/streams", tags=["streams"])
_EXAMPLE = {"user_id": 1, "email": "ada@example.com"}
_MESSAGE = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": FIELDS_MAX,
    "propertyNames": {"minLength": 1},
    "additionalProperties": True,
    "description": str(__doc__),
}
_ND_TEXT = "One message a line"
_STORED = (
    "malformed-json", "wrong-type", "body-too-large", "media-type", "invalid", "idempotency-key-reused",
    "stream-not-allowed", "backlog", "memory", "no-models", "redis-unavailable", "redis-refused", "outcome-unknown",
    "not-confirmed", "busy",
)  # fmt: skip
REPLICAS_MAX = 16
_DIGITS_MAX = 3
#: The parameters of both ways to publish.
_PARAMETERS = [
    STREAM_PARAMETER,
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": "A message is stored once in 24 h under the same key, however often it is sent.",
        "schema": {"type": "string", "maxLength": KEY_BYTES_MAX, "pattern": IDEMPOTENCY_KEY_PATTERN},
        "example": '"8e03978e-40d5-43e8-bc93-6894a57f9324"',
    },
    {
        "name": "validate",
        "in": "query",
        "required": False,
        "description": "Check against the model of the stream's handlers first; without it, [api] validate decides",
        "schema": {"type": "boolean"},
    },
    {
        "name": "after_s",
        "in": "query",
        "required": False,
        "description": "Publish it this many seconds from now; excludes `at`",
        "schema": {"type": "number", "minimum": 0, "maximum": SECONDS_MAX},
    },
    {
        "name": "at",
        "in": "query",
        "required": False,
        "description": "Publish it later: at this time; not together with `after_s`",
        "schema": {"type": "string", "format": "date-time"},
    },
    {
        "name": "wait_replicas",
        "in": "query",
        "required": False,
        "description": "Answer when this many replicas have it; without it, [api] wait_replicas decides",
        "schema": {"type": "integer", "minimum": 0, "maximum": REPLICAS_MAX},
    },
    {
        "name": "wait_aof",
        "in": "query",
        "required": False,
        "description": "Answer when it is in the append-only file on disk; without it, [api] wait_aof decides",
        "schema": {"type": "boolean"},
    },
    {
        "name": "traceparent",
        "in": "header",
        "required": False,
        "description": "W3C Trace Context: the message continues this trace; it becomes a field",
        "schema": {"type": "string"},
    },
]
_ATTRIBUTES = {name: {"type": "string", "minLength": 1} for name in ("id", "source", "type")}
_EVENT_TIME = {"type": ["string", "null"], "format": "date-time"}
_CLOUD_EVENT = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"const": "1.0"},
        **_ATTRIBUTES,
        "time": _EVENT_TIME,
        "data": {"propertyNames": {"minLength": 1}},
        "data_base64": {"type": ["string", "null"]},
    },
    "propertyNames": {"pattern": "^([a-z0-9]+|data_base64)$"},
    "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
    "not": {
        "required": ["data", "data_base64"],
        "properties": {"data": {"not": {"type": "null"}}, "data_base64": {"type": "string"}},
    },
    "description": "CloudEvents 1.0: the members of `data` are the message, beside fields such as `ce_id`",
}
_EXAMPLE_EVENT = {"specversion": "1.0", "id": "1", "source": "/users", "type": "user.created", "data": _EXAMPLE}
_REPLAYED = {
    "Idempotency-Replayed": {"description": "true: the message was stored before", "schema": {"type": "string"}}
}
_LOCATION = {"Location": {"description": "The address of the message", "schema": {"type": "string"}}}


async def publish(request: Request) -> Response:
    """202: Redis has stored the message. With `after_s` or `at` a pool publishes it then: see `GET /v1/later`.

    A CloudEvent is stored once, however often it is sent: without Idempotency-Key, its source and id are the key.
    """
    stream, key = _admitted(request), get_idempotency_key(request)
    after_s, at = parse_time(request)
    given = await read_one(request)
    fields = await _checked(request, stream, given)
    if confirmation := _confirmation(request, later=after_s is not None or at is not None):
        (entry,), replayed, due = await _service(request).confirming.publish_batch(
            stream, fields, key=key or given.key, confirmation=confirmation
        )
    else:
        entry, replayed, due = await _service(request).publisher.publish(
            stream, fields[0], key=key or given.key, after_s=after_s, at=at
        )
    headers = {"Idempotency-Replayed": "true"} if replayed else {}
    if due is not None:
        headers["Location"] = f"{stream_path(stream)}/later/{entry}"
        return json_response({"later": entry, "due": _text(due), "stream": stream}, 202, headers)
    headers["Location"] = f"{messages_path(stream)}/{entry}"
    return json_response({"id": entry, "stream": stream, "accepted_at": time_of_id(entry)}, 202, headers)


async def publish_batch(request: Request) -> Response:
    """The body is a JSON array, one object a line (application/x-ndjson), or an array of CloudEvents.

    All are stored, or none.
    """
    stream, key = _admitted(request), get_idempotency_key(request)
    after_s, at = parse_time(request)
    given = await read_many(request)
    fields = await _checked(request, stream, given)
    confirmation = _confirmation(request, later=after_s is not None or at is not None)
    service = _service(request)
    publisher = service.confirming if confirmation else service.publisher
    ids, replayed, due = await publisher.publish_batch(
        stream, fields, key=key or given.key, after_s=after_s, at=at, confirmation=confirmation
    )
    if len(ids) > SLICE:
        await asyncio.sleep(0)
    headers = {"Idempotency-Replayed": "true"} if replayed else {}
    if due is not None:
        return json_response({"later": ids, "due": _text(due), "stream": stream, "count": len(ids)}, 202, headers)
    body = {
        "stream": stream,
        "ids": ids,
        "count": len(ids),
        "accepted_at": time_of_id(ids[-1]) if ids else None,
        "results": [{"id": entry, "outcome": "stored"} for entry in ids],
    }
    return json_response(body, 202, headers)


#: Come before all other routes.
plain_routes = (
    plain_post(
        "/v1/streams/{stream:name}/messages",
        publish,
        tag="streams",
        summary="Publish a message",
        responses=answers(Stored | StoredLater, *_STORED, status=202, headers={**_REPLAYED, **_LOCATION}),
        openapi_extra={
            "parameters": _PARAMETERS,
            **json_body(
                _MESSAGE,
                _EXAMPLE,
                **{cloud_events.STRUCTURED: {"schema": _CLOUD_EVENT, "example": _EXAMPLE_EVENT}},
            ),
        },
    ),
    plain_post(
        "/v1/streams/{stream:name}/messages:batch",
        publish_batch,
        tag="streams",
        summary="Publish many messages",
        responses=answers(StoredBatch | StoredLaterBatch, *_STORED, status=202, headers=_REPLAYED),
        openapi_extra={
            "parameters": _PARAMETERS,
            **json_body(
                {"type": "array", "items": _MESSAGE, "maxItems": BATCH_MAX},
                [_EXAMPLE],
                **{
                    NDJSON: {
                        "schema": {"type": "array", "items": _MESSAGE, "maxItems": BATCH_MAX, "description": _ND_TEXT},
                        "example": '{"user_id": 1}\n{"user_id": 2}\n',
                    },
                    cloud_events.BATCHED: {
                        "schema": {"type": "array", "items": _CLOUD_EVENT, "maxItems": BATCH_MAX},
                        "example": [_EXAMPLE_EVENT],
                    },
                },
            ),
        },
    ),
)


@router.get(
    "/{stream:name}/messages",
    summary="Read a range of history",
    responses=answers(MessagePage, "invalid", "wrong-type", "redis-unavailable", "busy"),
)
async def read_messages(
    stream: Stream,
    service: ServiceDep,
    start: Annotated[Bound, Query(description="First id; `(` before it excludes it")] = "-",
    end: Annotated[Bound, Query(description="Last id; `(` before it excludes it")] = "+",
    count: Annotated[int, Query(ge=1, le=COUNT_MAX)] = 100,
    reverse: Annotated[bool, Query(description="Newest first")] = False,
) -> Response:
    """`next` is the address of the next page, null after the last one. A stream that does not exist is empty.

    A page of large messages has fewer than `count`: it ends at about 2 MB.
    """
    rows, more = await service.read(lambda redis: read_page(redis, stream, start, end, count, reverse=reverse))
    messages = [as_message(entry, fields) for entry, fields in rows]
    following = None
    if more:
        last = f"({messages[-1]['id']}"
        bounds = {"start": start, "end": last} if reverse else {"start": last, "end": end}
        query = urlencode({**bounds, "count": count, "reverse": str(reverse).lower()})
        following = f"{messages_path(stream)}?{query}"
    return json_response({"messages": messages, "next": following})


@router.get(
    "/{stream:name}/messages/{entry_id}",
    summary="Read one message",
    responses=answers(StoredMessage, "not-found", "invalid", "wrong-type", "redis-unavailable", "busy"),
)
async def read_message(stream: Stream, entry_id: EntryId, service: ServiceDep) -> Response:
    """`entry_id` is the id that publishing returned."""
    rows: Any = await service.read(lambda redis: redis.xrange(stream, min=entry_id, max=entry_id))
    if not rows:
        raise Problem("not-found", f"stream {stream!r} has no entry {entry_id}")
    return json_response(as_message(*rows[0]))


def as_message(entry: bytes, fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return an entry for JSON; bytes that are not UTF-8 become \\xNN."""
    return {"id": entry.decode(), "fields": {decoded(name): decoded(value) for name, value in fields.items()}}


def _text(due: datetime) -> str:
    return due.isoformat(timespec="milliseconds")


def _admitted(request: Request) -> str:
    """Return the stream of the request. Raises Problem when it may not be published to, or not now."""
    stream = writable_stream(request)
    service = _service(request)
    settings = service.settings.api
    check_allowed(settings, stream)
    if has_limits(settings):
        check_limits(settings, stream, service.redis_status.peek())
    return stream


async def _checked(request: Request, stream: str, given: Input) -> list[Mapping[str, str]]:
    """Return the fields to store. Raises Problem for a message that the stream's handlers would refuse."""
    service = _service(request)
    if _flag(request, "validate", default=service.settings.api.validate):
        await service.models.check(stream, given.messages)
    if trace := trace_fields(request):
        return [{**trace, **message.fields} for message in given.messages]
    return [message.fields for message in given.messages]


def _confirmation(request: Request, *, later: bool) -> Confirmation | None:
    """Return what has to confirm a publish that is not for later. Raises Problem for a wrong parameter."""
    settings = _service(request).settings.api
    replicas, aof = settings.wait_replicas, _flag(request, "wait_aof", default=settings.wait_aof)
    if request.scope["query_string"] and (text := request.query_params.get("wait_replicas")) is not None:
        if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX and int(text) <= REPLICAS_MAX):
            detail = f"must be a number from 0 to {REPLICAS_MAX}"
            errors = [{"parameter": "wait_replicas", "detail": detail}]
            raise Problem("invalid", f"wait_replicas {detail}", errors=errors)
        replicas = int(text)
    if later or not (replicas or aof):
        return None
    return Confirmation(replicas, aof, settings.wait_timeout_ms)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _flag(request: Request, name: str, *, default: bool) -> bool:
    """Return a parameter of the query. Raises Problem unless it is true or false."""
    if not request.scope["query_string"] or (text := request.query_params.get(name)) is None:
        return default
    if text not in ("true", "false"):
        detail = "must be true or false"
        raise Problem("invalid", f"{name} {detail}", errors=[{"parameter": name, "detail": detail}])
    return text == "true"
