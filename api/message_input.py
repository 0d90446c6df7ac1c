"""Reads the messages of a request: a JSON object, an array, objects in lines, or CloudEvents."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from supervisor.core.encode import encode_fields
from supervisor.errors import EncodeError
from supervisor.publisher import BATCH_MAX

from . import cloud_events
from .json_body import parse_batch, parse_value
from .plain_route import read_body
from .problems import Problem, pointer_of
from .schemas import check_media_type
from .validation import ERRORS_MAX, SLICE, Incoming

JSON = "application/json"
NDJSON = "application/x-ndjson"


@dataclass(slots=True)
class Input:
    """The messages of a request."""

    messages: list[Incoming] = field(default_factory=list)
    #: The idempotency key of CloudEvents.
    key: str | None = None


async def read_one(request: Request) -> Input:
    """Return the message of a request. Raises Problem."""
    if cloud_events.is_binary(request.headers):
        return _binary_event(request.headers, await read_body(request))
    media_type = check_media_type(request, JSON, cloud_events.STRUCTURED)
    items = _Items("")
    body = await parse_value(await read_body(request))
    if media_type == cloud_events.STRUCTURED:
        items.add_event(body, 0, ())
    else:
        items.add(body, 0, ())
    return items.finish()


async def read_many(request: Request) -> Input:
    """Return the messages of a batch. Raises Problem."""
    media_type = check_media_type(request, JSON, NDJSON, cloud_events.BATCHED)
    if media_type == NDJSON:
        return await _read_lines(request)
    body = await parse_batch(await read_body(request))
    if not isinstance(body, list):
        raise Problem("invalid", f"a batch must be a JSON array, not {_kind(body)}; use {NDJSON} for one object a line")
    of_events = media_type == cloud_events.BATCHED
    items = _Items("event" if of_events else "message")
    add = items.add_event if of_events else items.add
    for at, item in enumerate(body):
        if at % SLICE == SLICE - 1:
            await asyncio.sleep(0)
        add(item, at, (at,))
    return items.finish()


async def _read_lines(request: Request) -> Input:
    """Return the messages of NDJSON, which is read while it arrives. Raises Problem."""
    items, at = _Items("line"), 0
    async for number, line in _lines(request):
        if at >= BATCH_MAX:
            raise Problem("invalid", f"more than {BATCH_MAX} messages; at most {BATCH_MAX} are allowed at once")
        if at % SLICE == SLICE - 1:
            await asyncio.sleep(0)
        items.add(await parse_value(line, f"line {number}: "), number, (at,))
        at += 1
    return items.finish()


class _Items:
    """Collects the messages of a body, and all that is wrong with them."""

    def __init__(self, noun: str) -> None:
        """`noun` and the number of an item begin the text of an error; empty: there is only one item."""
        self._noun = noun
        self._found = Input()
        self._events: list[cloud_events.Event] = []
        self._errors: list[dict[str, str]] = []
        self._first = ""

    def add(self, item: Any, number: int, path: tuple[str | int, ...]) -> None:
        """Add a message as a JSON value."""
        if not isinstance(item, dict):
            self._refuse(number, f"a message must be a JSON object, not {_kind(item)}", path)
            return
        if len(item) == 1 and isinstance(inner := item.get("fields"), dict):
            item, path = inner, (*path, "fields")
        self._encode(item, number, path)

    def add_event(self, item: Any, number: int, path: tuple[str | int, ...]) -> None:
        """Add a CloudEvent as a JSON value."""
        try:
            event = cloud_events.structured(item)
        except cloud_events.EventError as error:
            self._refuse(number, str(error), (*path, error.member) if error.member else path)
            return
        self.add_parsed(event, number, (*path, "data") if isinstance(item.get("data"), dict) else path)

    def add_parsed(self, event: cloud_events.Event, number: int, path: tuple[str | int, ...]) -> None:
        """Add a CloudEvent; `path` is where its message is in the body."""
        self._events.append(event)
        self._encode(event.message, number, path)

    def finish(self) -> Input:
        """Return all messages. Raises Problem with what is wrong with them."""
        if self._errors:
            raise Problem("invalid", self._first, errors=self._errors)
        if self._events:
            self._found.key = cloud_events.key_of(self._events)
        return self._found

    def _encode(self, message: dict[str, Any], number: int, path: tuple[str | int, ...]) -> None:
        try:
            self._found.messages.append(Incoming(encode_fields(message), message, path))
        except EncodeError as error:
            name = getattr(error, "field", None)
            self._refuse(number, str(error), path if name is None else (*path, name))

    def _refuse(self, number: int, text: str, path: Sequence[str | int]) -> None:
        if self._noun:
            text = f"{self._noun} {number}: {text}"
        self._first = self._first or text
        self._errors.append({"pointer": pointer_of(*path), "detail": text})
        if len(self._errors) >= ERRORS_MAX:
            self.finish()


def _binary_event(headers: Mapping[str, str], body: bytes) -> Input:
    media_type = headers.get("content-type", "")
    try:
        event = cloud_events.binary(headers.items(), media_type, body)
    except cloud_events.EventError as error:
        text = str(error)
        parameter = f"{cloud_events.HEADER_PREFIX}{error.member}"
        raise Problem("invalid", text, errors=[{"parameter": parameter, "detail": text}]) from None
    except (ValueError, RecursionError) as error:
        raise Problem("malformed-json", str(error)) from None
    items = _Items("")
    items.add_parsed(event, 0, ())
    return items.finish()


async def _lines(request: Request) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the lines of a body that are not blank, with their numbers, while it arrives. Raises ClientDisconnect."""
    number, begun = 0, list[bytes]()
    async for piece in request.stream():
        *ends, rest = piece.split(b"\n")
        for end in ends:
            number += 1
            line = b"".join([*begun, end])
            begun.clear()
            if line.strip():
                yield number, line
        begun.append(rest)
    if (last := b"".join(begun)).strip():
        yield number + 1, last


def _kind(value: object) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
