"""Copies of replayed messages, in a group's replay stream. Pure.

The first field of a copy is ORIGIN with the id that the message had; the message's own fields follow.
"""

from collections.abc import Sequence

ORIGIN = "supervisor:origin"
_ORIGIN = ORIGIN.encode()
#: A field's name and its value.
_PAIR = 2


def original(entry_id: bytes, flat: Sequence[bytes]) -> tuple[bytes, Sequence[bytes]]:
    """Return the id and the flat fields of the message that the entry is a copy of.

    Anybody can write to a stream: an entry that is not a copy stands for itself.
    """
    origin = original_id(entry_id, flat)
    return (entry_id, flat) if origin == entry_id else (origin, flat[_PAIR:])


def original_id(entry_id: bytes, flat: Sequence[bytes]) -> bytes:
    """Return the id of the message that the entry is a copy of; `flat` needs no more than the first field."""
    return flat[1] if len(flat) >= _PAIR and flat[0] == _ORIGIN and _is_id(flat[1]) else entry_id


def name_of_copy(message_id: str, copy: bytes) -> bytes:
    """Return how turns and rates name a copy: `<id of the message>@<id of the copy>`."""
    return message_id.encode() + b"@" + copy


def _is_id(text: bytes) -> bool:
    ms, _, seq = text.partition(b"-")
    return ms.isdigit() and seq.isdigit()
