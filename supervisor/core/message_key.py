"""Reads a message's key, and its cost: the value of a field, or what a function of the message returns. Pure."""

from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal
from enum import Enum
from hashlib import blake2b
from typing import Any
from uuid import UUID

from supervisor.core.options import FieldOrFunction
from supervisor.messages import Message

#: A longer key is stored as its hash, like one that is not text.
KEY_BYTES_MAX = 200
COST_MAX = 1_000_000_000
#: Their text is the same in all processes.
_PLAIN = (str, bytes, int, float, Decimal, UUID, date, Enum, type(None))
#: Gives a message's key; None when it has none.
KeyReader = Callable[[Message], bytes | None]
#: Gives the keys of many messages, or None.
KeysReader = Callable[[Sequence[Message]], list[bytes] | None]


def key_reader(key: FieldOrFunction) -> KeyReader:
    """Return the function that reads a message's key; for an empty `key` no message has one."""
    if not key:
        return lambda _: None
    if callable(key):
        function = key
        return lambda message: key_of(function(message))
    name = key.encode()

    def read(message: Message) -> bytes | None:
        value = message.value_of(name)
        if value is None or (value.isascii() and len(value) <= KEY_BYTES_MAX):
            return value
        return key_of(value)

    return read


def keys_reader(key: FieldOrFunction) -> KeysReader:
    """Return the function that reads the keys of many messages at once, which is quicker.

    It returns None when they have to be read one by one: some have no key, or one that is stored in another form.
    """
    if not key or callable(key):
        return lambda _: None
    name = key.encode()

    def read(messages: Sequence[Message]) -> list[bytes] | None:
        values: list[Any] = [message.value_of(name) for message in messages]
        try:
            is_plain = b"".join(values).isascii() and max(map(len, values), default=0) <= KEY_BYTES_MAX
        except TypeError:  # one of them has no such field
            return None
        return values if is_plain else None

    return read


def key_of(key: object) -> bytes | None:
    """Return the key as it is stored; None for None.

    Raises TypeError for a value whose text may differ between processes: an address in it, the order of a set.
    """
    if key is None or (type(key) is bytes and key.isascii() and len(key) <= KEY_BYTES_MAX):
        return key
    if type(key) is not str and not _is_plain(key):
        raise TypeError(
            "a key must be text, bytes, a number, a UUID, a date, an enum, or a tuple or list of these, not"
            f" {type(key).__name__}"
        )
    data = key if isinstance(key, bytes) else str(key).encode(errors="surrogateescape")
    try:
        if len(data) <= KEY_BYTES_MAX and data.decode():
            return data
    except UnicodeDecodeError:
        pass
    return b"#" + blake2b(data, digest_size=16).hexdigest().encode() if data else data


def _is_plain(key: object) -> bool:
    return isinstance(key, _PLAIN) or (isinstance(key, tuple | list) and all(map(_is_plain, key)))


def cost_reader(cost: FieldOrFunction) -> Callable[[Message], float]:
    """Return the function that reads how much of its rate a message takes; it may raise ValueError."""
    if not cost:
        return lambda _: 1.0
    if callable(cost):
        function = cost
        return lambda message: _checked(function(message), "what rate_cost returned")
    name = cost.encode()
    return lambda message: _checked(message.value_of(name), f"the field {cost!r}, which is the rate_cost,")


def _checked(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < COST_MAX:
        raise ValueError(f"{what} must be a number from 0 to {COST_MAX:,}")
    return number
