"""`Message`, which a handler gets, and the exceptions that say how a message is settled.

Returning means done. Raising means retry with backoff, then dead letter; `Retry`, `Reject` and `BatchError` choose.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from supervisor.errors import SupervisorError, UsageError

_decode = bytes.decode
#: A year.
AFTER_S_MAX = 31_536_000


class Origin(Protocol):
    """Where a message comes from."""

    @property
    def stream(self) -> str:
        """The stream that the handler is for."""

    @property
    def group(self) -> str:
        """The consumer group."""


@dataclass(frozen=True, slots=True)
class _Given:
    """The origin of a message that a program made itself."""

    stream: str
    group: str


class Message:
    """One delivery of an entry to a handler.

    Id and fields are decoded when they are first asked for, so a handler pays only for what it reads.
    """

    # A worker makes one object per message and keeps its own notes in it; a handler uses the properties.
    __slots__ = ("_fields", "_id", "entry", "failures", "flat", "origin", "recorded")

    def __init__(
        self,
        id: str,  # noqa: A002 - Redis's own word for it
        stream: str,
        group: str,
        fields: Mapping[str, str] | None = None,
        deliveries: int = 1,
    ) -> None:
        """Make one from text; a worker uses `from_reply`."""
        self.origin: Origin = _Given(stream, group)
        #: The id of the entry that is acked.
        self.entry = id.encode()
        self.flat: Sequence[bytes] = [part.encode() for pair in (fields or {}).items() for part in pair]
        #: Attempts that failed before this one.
        self.failures = deliveries - 1
        #: Redis keeps a record of retries or crashes, which the ack must remove.
        self.recorded = False
        # Decoded when they are asked for.
        self._id: str | None = None
        self._fields: dict[str, str] | None = None

    @classmethod
    def from_reply(cls, origin: Origin, entries: Iterable[Sequence[Any]]) -> list["Message"]:
        """Make a message of each `[id, [name, value, ...]]` of a reply."""
        messages, new = [], cls.__new__
        for entry, flat in entries:
            # Attributes are set here and not in a method: a call costs as much as all of them.
            message = new(cls)
            message.origin = origin
            message.entry = entry
            message.flat = flat
            message.failures = 0
            message.recorded = False
            message._id = message._fields = None
            messages.append(message)
        return messages

    def stand_for(self, message_id: str) -> None:
        """Take the id of the message that this entry is a copy of."""
        self._id = message_id

    @property
    def id(self) -> str:
        """The entry's id in the stream, `<Unix ms of the server>-<sequence>`."""
        if self._id is None:
            self._id = self.entry.decode()
        return self._id

    @property
    def stream(self) -> str:
        """The stream that the entry was published to."""
        return self.origin.stream

    @property
    def group(self) -> str:
        """The consumer group of the handler."""
        return self.origin.group

    @property
    def fields(self) -> dict[str, str]:
        """The entry's fields. Raises DecodeError when one is not UTF-8."""
        if self._fields is None:
            self._fields = decode_fields(self.flat)
        return self._fields

    @property
    def raw(self) -> dict[bytes, bytes]:
        """The entry's fields as bytes."""
        flat = iter(self.flat)
        return dict(zip(flat, flat, strict=True))

    @property
    def deliveries(self) -> int:
        """Which attempt this is, from 1. Counts handler runs that failed, not re-reads."""
        return self.failures + 1

    @property
    def published_at(self) -> datetime:
        """When Redis stored the entry, by the server's clock (UTC)."""
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)

    def __repr__(self) -> str:
        """Return where the message is, without its content, which may be private."""
        return f"Message(id={self.id!r}, stream={self.stream!r}, group={self.group!r}, deliveries={self.deliveries})"


class Retry(SupervisorError):
    """Raise it to deliver the message again after `after_s` seconds.

    Without `after_s` the configured backoff applies. It counts as an attempt. Raises UsageError for a wrong `after_s`.
    """

    def __init__(self, reason: str = "asked for a retry", *, after_s: float | None = None) -> None:
        super().__init__(reason)
        if after_s is not None and not (isinstance(after_s, int | float) and 0 <= after_s <= AFTER_S_MAX):
            raise UsageError(f"Retry: after_s = {after_s!r} must be a number of seconds from 0 to {AFTER_S_MAX}")
        self.after_s = after_s


class Reject(SupervisorError):
    """Raise it to make the message a dead letter now, with `reason`."""

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)


class DecodeError(Reject):
    """The entry does not fit the handler's annotation; it becomes a dead letter now."""


class BatchError(SupervisorError):
    """Raise it from a batch handler: the named messages fail, all others are acked.

    Keys are message ids; values are exceptions that say how each message is settled (`Retry`, `Reject` or any other).
    Raises UsageError for a value that is not an exception.
    """

    def __init__(self, failed: Mapping[str, BaseException]) -> None:
        super().__init__(f"{len(failed)} messages of the batch failed")
        for message_id, error in failed.items():
            if not isinstance(error, BaseException):
                raise UsageError(f"BatchError: the value for {message_id!r} must be an exception, not {error!r}")
        self.failed = dict(failed)


def decode_fields(flat: Sequence[bytes]) -> dict[str, str]:
    """Return Redis's flat `name, value, name, value` as a dict. Raises DecodeError when it is not UTF-8."""
    try:
        parts = map(_decode, flat)
        return dict(zip(parts, parts, strict=False))  # a strict zip takes a fifth longer
    except UnicodeDecodeError as error:
        raise DecodeError(f"the message is not UTF-8: {error}") from None
