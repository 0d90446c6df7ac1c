"""Copies of messages whose entry was trimmed: how one says of which message it is. Pure.

The first field's name tells that an entry is a copy, its value is the id that the message had; the message's own
fields follow. A message of very many fields has them in one field, as JSON, as its dead letter had.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.core.letter import of_json

if TYPE_CHECKING:
    from collections.abc import Sequence

ORIGIN = "supervisor:origin"
#: The same, and what follows is one field of JSON.
ORIGIN_OF_JSON = "supervisor:origin-json"
_KINDS = (ORIGIN.encode(), ORIGIN_OF_JSON.encode())
#: A field's name and its value.
_PAIR = 2


def original(entry_id: bytes, flat: Sequence[bytes]) -> tuple[bytes, Sequence[bytes]]:
    """The id and the fields, flat as Redis has them, of the message that the entry is a copy of.

    Anybody can write to a stream: an entry that is no copy stands for itself.
    """
    origin = origin_of(entry_id, flat)
    if origin == entry_id:
        return entry_id, flat
    fields = of_json(flat[3]) if flat[0] == _KINDS[1] and len(flat) > _PAIR else None
    return origin, flat[_PAIR:] if fields is None else [part for pair in fields.items() for part in pair]


def origin_of(entry_id: bytes, flat: Sequence[bytes]) -> bytes:
    """The same, only the id; the first field is enough."""
    return flat[1] if len(flat) >= _PAIR and flat[0] in _KINDS and _is_id(flat[1]) else entry_id


def _is_id(text: bytes) -> bool:
    ms, _, seq = text.partition(b"-")
    return ms.isdigit() and seq.isdigit()
