"""Encodes a message as the fields of an entry: strings as they are, everything else as JSON text. Pure.

Values that JSON writes as strings (dates, UUIDs, enums of strings) are stored without the quotes, so that any program
can read them. `supervisor.handling.decode` is the way back.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from pathlib import PurePath
from typing import Any

import orjson

from supervisor.errors import EncodeError

#: Keeps every script that writes an entry quick.
FIELDS_MAX = 1_000
_OPTIONS = orjson.OPT_NON_STR_KEYS


def fields_of(message: Any) -> dict[str, str]:
    """Return the fields of a mapping, a pydantic model or a dataclass. Raises EncodeError."""
    if isinstance(message, Mapping):
        return encode_fields(message)
    if hasattr(message, "model_dump"):
        return encode_fields(message.model_dump(mode="json", by_alias=True))
    if dataclasses.is_dataclass(message) and not isinstance(message, type):
        return encode_fields({field.name: getattr(message, field.name) for field in dataclasses.fields(message)})
    raise EncodeError(f"a message must be a mapping, a pydantic model or a dataclass, not {type(message).__name__}")


def encode_fields(message: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of a mapping. Raises EncodeError, which names the field at fault."""
    if not message:
        raise EncodeError("a message needs at least one field")
    if len(message) > FIELDS_MAX:
        raise EncodeError(f"a message has at most {FIELDS_MAX} fields, not {len(message)}; put more into one as JSON")
    return {_name(name): _text(name, value) for name, value in message.items()}


def _name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise EncodeError(f"a field's name must be a string that is not empty, not {name!r}", str(name))
    return _unicode(name, name)


def _text(name: str, value: object) -> str:
    if type(value) is str:
        return _unicode(name, value)
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError as error:
            raise EncodeError(f"field {name!r}: bytes must be UTF-8: {error.reason}", name) from None
    if isinstance(value, float) and not math.isfinite(value):
        raise EncodeError(f"field {name!r}: {value} is not JSON; write it as a string", name)
    text = _json(name, value)
    return json.loads(text) if text.startswith('"') else text


def _json(name: str, value: object) -> str:
    try:
        return orjson.dumps(value, default=_plain, option=_OPTIONS).decode()
    except orjson.JSONEncodeError as error:
        if "64-bit" in str(error):
            return _big_integers(name, value)
        raise EncodeError(f"field {name!r}: not JSON serializable: {error}", name) from None


def _big_integers(name: str, value: object) -> str:
    try:
        return json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EncodeError(f"field {name!r}: not JSON serializable: {error}", name) from None


def _plain(value: object) -> Any:
    """Convert a value of a type that orjson does not know."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, Decimal | PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def _unicode(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"field {name!r}: not Unicode: {error.reason}", name) from None
    return text
