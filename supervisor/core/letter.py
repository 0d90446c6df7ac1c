"""How a dead letter keeps the fields of its message: each behind a prefix, or all in one field of JSON. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: The message's own fields keep their names behind this, so that none clashes with ours.
FIELD_PREFIX = b"field:"
#: More fields than this don't go through one call of a Lua script; they are kept as one field of JSON, bytes that
#: are not UTF-8 in it as Python's surrogateescape has them.
FIELDS_MAX = 3_000
FIELDS_JSON = b"fields_json"


def to_json(fields: Iterable[tuple[bytes, bytes]]) -> str:
    """What `of_json` gives back."""
    return json.dumps({_escaped(name): _escaped(value) for name, value in fields})


def of_json(text: bytes) -> dict[bytes, bytes] | None:
    """The fields of a letter that keeps them as JSON; None: it is none that `to_json` has made."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return dict(_encoded(found)) if isinstance(found, dict) else None


def _escaped(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _encoded(fields: dict[str, object]) -> Iterator[tuple[bytes, bytes]]:
    for name, value in fields.items():
        yield _bytes(name), _bytes(str(value))


def _bytes(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half a pair, which no worker has written
        return text.encode(errors="backslashreplace")
