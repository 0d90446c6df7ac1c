"""The fields of an outbox row, as text and back. Pure."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING

from supervisor.text import is_unicode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.core.field_text import Value

#: The member that holds the bytes of a value that is not text.
_BASE64 = "base64"


def row_text(fields: Mapping[str, Value]) -> str:
    """Return encoded fields as a JSON object of strings; a value that is not text is `{"base64": "..."}`."""
    return json.dumps({name: _json_value(value) for name, value in fields.items()})


def row_fields(text: str) -> dict[str, Value]:
    """Return the fields of a row. Raises ValueError for a row that another program has written wrongly."""
    try:
        members = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"fields must be JSON: {error}") from None
    if not isinstance(members, dict) or not members:
        raise ValueError("fields must be a JSON object that is not empty")
    return {checked_text("a field's name", name): _value(name, value) for name, value in members.items()}


def check_row(key: object, stream: object, fields: object) -> None:
    """Raise ValueError for a row with other values than text: SQLite keeps whatever a program writes."""
    for name, value in (("key", key), ("stream", stream), ("fields", fields)):
        checked_text(name, value)


def checked_text(what: str, value: object) -> str:
    """Return the text. Raises ValueError if it is not text, is empty or can't be encoded as UTF-8."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} must be text that is not empty, not {'' if value == '' else type(value).__name__}")
    if not is_unicode(value):
        raise ValueError(f"{what} is not Unicode")
    return value


def _json_value(value: Value) -> object:
    return value if isinstance(value, str) else {_BASE64: b64encode(value).decode()}


def _value(name: str, value: object) -> Value:
    if isinstance(value, str) and is_unicode(value):
        return value
    if isinstance(value, dict) and list(value) == [_BASE64] and isinstance(value[_BASE64], str):
        return b64decode(value[_BASE64], validate=True)
    raise ValueError(f'field {name!r} must be a Unicode string or {{"{_BASE64}": "..."}}')
