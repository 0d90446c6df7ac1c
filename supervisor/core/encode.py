"""Encodes a message as the fields of an entry: strings as they are, everything else as JSON text. Pure.

Values that JSON writes as strings (dates, UUIDs, enums of strings) are stored without the quotes, so that any program
can read them. A model goes through its `ModelCodec`, which is also the way back.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from decimal import Decimal
from pathlib import PurePath
from typing import Any

from supervisor.core.field_text import Value, json_value_text, unicode_text
from supervisor.core.json_text import ExactNumber
from supervisor.errors import EncodeError

#: Keeps every script that writes an entry quick.
FIELDS_MAX = 1_000


def fields_of(message: Any) -> Mapping[str, Value]:
    """Return the fields of a mapping, a pydantic model or a dataclass.

    Raises EncodeError, which names the field, also for a model that a handler of the same model would not get back as
    it is.
    """
    if isinstance(message, Mapping):
        return encode_fields(message)
    if hasattr(message, "model_dump") or (dataclasses.is_dataclass(message) and not isinstance(message, type)):
        # Not at the top: programs that publish no models need no pydantic.
        from supervisor.core.model_codec import codec_of

        return _checked(codec_of(message.__class__).encode(message))
    raise EncodeError(f"a message must be a mapping, a pydantic model or a dataclass, not {type(message).__name__}")


def encode_fields(message: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of a mapping. Raises EncodeError, which names the field at fault."""
    # Most names and values are ASCII, and need no look at each character.
    return {
        name if type(name) is str and name and name.isascii() else _name(name): (
            value if type(value) is str and value.isascii() else _text(name, value)
        )
        for name, value in _checked(message).items()
    }


def _checked(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    if not fields:
        raise EncodeError("a message needs at least one field")
    if len(fields) > FIELDS_MAX:
        raise EncodeError(f"a message has at most {FIELDS_MAX} fields, not {len(fields)}; put more into one as JSON")
    return fields


def _name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise EncodeError(f"a field's name must be a string that is not empty, not {name!r}", str(name))
    return unicode_text(name, name)


def _text(name: str, value: object) -> str:
    if type(value) is str:
        return unicode_text(name, value)
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError as error:
            raise EncodeError(f"field {name!r}: bytes must be UTF-8: {error.reason}", name) from None
    if isinstance(value, float) and not math.isfinite(value) and not isinstance(value, ExactNumber):
        raise EncodeError(f"field {name!r}: {value} is not JSON; write it as a string", name)
    text = json_value_text(name, value, _plain)
    return json.loads(text) if text.startswith('"') else text


def _plain(value: Any) -> Any:
    """Convert a value of a type that orjson does not know."""
    if hasattr(value, "model_dump"):
        from supervisor.core.model_codec import codec_of

        return codec_of(value.__class__).dump(value)
    if isinstance(value, Decimal | PurePath):
        return str(value)
    if isinstance(value, set | frozenset):
        return list(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")
