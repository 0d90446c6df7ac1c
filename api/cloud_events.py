"""Reads CloudEvents 1.0 of the HTTP binding as messages.

The members of `data` become the fields of the message, so that a handler's model need not know the envelope. The
context attributes become the fields `ce_id`, `ce_source`, `ce_type` and so on, those of distributed tracing keep their
names. Data that is not a JSON object becomes the field `data`, binary data the field `data_base64`.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from supervisor.core.json_text import parse_exact

STRUCTURED = "application/cloudevents+json"
BATCHED = "application/cloudevents-batch+json"
#: Before the attributes in the headers of the binary mode, and in the fields of a message.
HEADER_PREFIX = "ce-"
FIELD_PREFIX = "ce_"
_VERSION = "1.0"
_REQUIRED = ("specversion", "id", "source", "type")
_NAME = re.compile("[a-z0-9]+")
_DATA = ("data", "data_base64")
_TRACE = frozenset({"traceparent", "tracestate"})
_JSON = re.compile(r"(application|text)/([\w.-]+\+)?json")


class EventError(ValueError):
    """An event that breaks the specification; `member` is the attribute at fault."""

    def __init__(self, member: str, detail: str) -> None:
        super().__init__(f"{member}: {detail}")
        self.member = member


@dataclass(frozen=True, slots=True)
class Event:
    """A message and where it comes from."""

    message: dict[str, Any]
    #: Unique for each event (CloudEvents 1.0.2, 3.1): the source and the id.
    identity: tuple[str, str]


def structured(event: Any) -> Event:
    """Read an event in JSON. Raises EventError."""
    if not isinstance(event, dict):
        raise EventError("", "an event is a JSON object")
    attributes = {name: value for name, value in event.items() if name not in _DATA and value is not None}
    given = [name for name in _DATA if event.get(name) is not None]
    if len(given) > 1:
        raise EventError("data", "an event has data or data_base64, not both")
    if given == ["data_base64"] and not isinstance(event["data_base64"], str):
        raise EventError("data_base64", "must be a string")
    data: dict[str, Any] = {}
    if given == ["data"] and _is_json(attributes.get("datacontenttype")) and isinstance(event["data"], dict):
        data = event["data"]
    elif given:
        data = {given[0]: event[given[0]]}
    return _event(attributes, data)


def binary(headers: Iterable[tuple[str, str]], media_type: str, body: bytes) -> Event:
    """Read an event whose attributes are headers. Raises EventError, and ValueError for a body that is not JSON."""
    attributes = {
        attribute: _decoded(attribute, value)
        for name, value in headers
        if (attribute := name.removeprefix(HEADER_PREFIX)) != name
    }
    if media_type:
        attributes["datacontenttype"] = media_type
    return _event(attributes, _binary_data(media_type, body))


def is_binary(headers: Mapping[str, str]) -> bool:
    """Return whether the headers hold an event."""
    return f"{HEADER_PREFIX}specversion" in headers


def key_of(events: Iterable[Event]) -> str:
    """Return the idempotency key of events: the same event, sent again, is stored once."""
    digest = hashlib.blake2b(digest_size=24)
    for event in events:
        for part in event.identity:
            digest.update(len(part).to_bytes(4, "big") + part.encode(errors="surrogatepass"))
    return f"cloudevents:{digest.hexdigest()}"


def _decoded(attribute: str, value: str) -> str:
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise EventError(attribute, "must be UTF-8 with percent-encoding") from None


def _binary_data(media_type: str, body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    if _is_json(media_type):
        data = parse_exact(body)
        return data if isinstance(data, dict) else {"data": data}
    try:
        return {"data": body.decode()}
    except UnicodeDecodeError:
        return {"data_base64": base64.b64encode(body).decode()}


def _is_json(media_type: Any) -> bool:
    """Return whether data of this type is JSON; without a type it is."""
    return not media_type or _JSON.fullmatch(str(media_type).partition(";")[0].strip().lower()) is not None


def _event(attributes: dict[str, Any], data: Mapping[str, Any]) -> Event:
    for name in _REQUIRED:
        if name not in attributes:
            raise EventError(name, "is required")
    for name, value in attributes.items():
        _check(name, value)
    fields = {name if name in _TRACE else FIELD_PREFIX + name: value for name, value in attributes.items()}
    return Event({**data, **fields}, (attributes["source"], attributes["id"]))


def _check(name: str, value: Any) -> None:
    if not _NAME.fullmatch(name):
        raise EventError(name, "the name of an attribute has lower-case letters and digits only")
    if not isinstance(value, str | bool | int | float):
        raise EventError(name, "an attribute is a string, a number or a boolean")
    if name in _REQUIRED and (not isinstance(value, str) or not value):
        raise EventError(name, "must be a string that is not empty")
    if name == "specversion" and value != _VERSION:
        raise EventError(name, f"must be {_VERSION}")
    if name == "time" and not _is_time(value):
        raise EventError(name, "must be a time of RFC 3339, such as 2026-01-31T12:00:00Z")


def _is_time(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (ValueError, TypeError):
        return False
