"""The members of a stream's sorted set `later`: messages that are published when they are due. Pure.

Any program may write one: a JSON object of the fields, `{"user_id": "1"}`, or with an id to cancel it by,
`{"id": "u1", "fields": {"user_id": "1"}}`. Its score is the due time in Unix ms. A member that was written before is
the same message: writing it again moves its due time.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from supervisor.core.encode import encode_fields
from supervisor.core.field_text import Value
from supervisor.core.json_text import DECODER
from supervisor.errors import EncodeError, UsageError
from supervisor.text import is_unicode
from supervisor.values import SECONDS_MAX

_EXAMPLE = "for example datetime(2030, 1, 31, 8, tzinfo=timezone.utc)"
#: The years that a datetime can have: 1 to 9999.
_FIRST_MS = -62_135_596_800_000
_LAST_MS = 253_402_300_799_000
_WRAPPED = frozenset({"id", "fields"})


class LaterMessage(NamedTuple):
    """A message that is not due yet."""

    #: The producer's, else a digest of the member.
    id: str
    fields: Mapping[str, Value]


class When(NamedTuple):
    """The time at which a message is due."""

    ms: int
    #: `ms` counts from now, by the server's clock; else it is Unix time.
    is_delay: bool


def when_of(after_s: float | None, at: datetime | None) -> When | None:
    """Return when a message is due, None for now. Raises UsageError."""
    if after_s is not None and at is not None:
        raise UsageError("give either after_s or at, not both")
    if after_s is not None:
        return When(round(check_delay(after_s) * 1000), is_delay=True)
    if at is not None:
        if not isinstance(at, datetime):
            raise UsageError(f"at: {at!r} must be a datetime, {_EXAMPLE}")
        if at.tzinfo is None:
            raise UsageError(f"at: {at} has no timezone; {_EXAMPLE}")
        return When(max(0, round(at.timestamp() * 1000)), is_delay=False)
    return None


def check_delay(after_s: float) -> float:
    """Return the delay. Raises UsageError."""
    is_number = isinstance(after_s, int | float) and not isinstance(after_s, bool)
    if not is_number or not 0 <= after_s <= SECONDS_MAX:
        raise UsageError(f"after_s: {after_s!r} must be a number of seconds between 0 and {SECONDS_MAX:,}")
    return after_s


def moment(ms: float) -> datetime:
    """Return the moment of a due time in Unix ms; the last one that Python knows for a time after the year 9999.

    Another program may have written any number, microseconds for example.
    """
    return datetime.fromtimestamp(min(max(ms, _FIRST_MS), _LAST_MS) / 1000, UTC)


def to_member(message_id: str, fields: Mapping[str, Value]) -> str:
    """Return the member for a message; bytes that are not UTF-8 are written as lone surrogates."""
    texts = {name: value if isinstance(value, str) else _escaped(value) for name, value in fields.items()}
    return json.dumps({"id": message_id, "fields": texts}, separators=(",", ":"))


def parse_member(member: bytes) -> LaterMessage:
    """Return the message of a member. Raises ValueError, which says what is wrong."""
    try:
        value = DECODER.decode(member.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    message_id = None
    if value.keys() <= _WRAPPED and isinstance(value.get("fields"), dict):
        message_id, value = value.get("id"), value["fields"]
        if message_id is not None and (not isinstance(message_id, str | int) or not str(message_id)):
            raise ValueError("its id is not a string")
        if not is_unicode(str(message_id)):
            raise ValueError("its id is not Unicode")
    name = digest_of(member) if message_id is None else str(message_id)
    return LaterMessage(name, _encoded(value))


def digest_of(member: bytes) -> str:
    """Return the id of a member that has none."""
    return hashlib.blake2b(member, digest_size=8).hexdigest()


def _escaped(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def _encoded(found: dict[str, Any]) -> Mapping[str, Value]:
    """Return the fields as they are stored in the stream. Raises ValueError."""
    escaped = {name: value for name, value in found.items() if isinstance(value, str) and not is_unicode(value)}
    try:
        fields: dict[str, Value] = {**encode_fields({**found, **dict.fromkeys(escaped, "")})}
        for name, value in escaped.items():
            fields[name] = value.encode(errors="surrogateescape")
    except EncodeError as error:
        raise ValueError(str(error)) from None
    except UnicodeEncodeError as error:
        raise ValueError(f"not Unicode: {error.reason}") from None
    return fields
