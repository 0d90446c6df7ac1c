"""`Message`, which a handler gets, and the exceptions that say how a message is settled.

Returning means done. Raising means retry with backoff, then dead letter; `Retry`, `Reject` and `BatchError` choose.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from supervisor.delivery import Delivery
from supervisor.errors import SupervisorError, UsageError
from supervisor.text import decoded

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)
#: A year.
AFTER_S_MAX = 31_536_000


@dataclass(frozen=True, slots=True)
class _Given:
    """The origin of a message that a program made itself."""

    stream: str
    group: str


class Message(Delivery):
    """One delivery of an entry to a handler.

    Id and fields are decoded when they are first asked for, so a handler pays only for what it reads.
    """

    # A worker makes one object per message and keeps its own notes in it; a handler uses the properties.
    __slots__ = ()

    def __init__(
        self,
        id: str,  # noqa: A002 - Redis's own word for it
        stream: str,
        group: str,
        fields: Mapping[str, str] | None = None,
        deliveries: int = 1,
    ) -> None:
        """Make one from text; a worker uses `from_reply`."""
        self.origin = _Given(stream, group)
        self.entry = id.encode()
        self.flat = [part.encode() for pair in (fields or {}).items() for part in pair]
        self.failures = deliveries - 1
        self.recorded = False
        self._id = None
        self._fields = None

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
        """When Redis stored the entry, by the server's clock (UTC).

        It is taken from the id, which a producer may choose: one beyond the year 9999 is its last moment.
        """
        try:
            return _EPOCH + timedelta(milliseconds=int(self.id.partition("-")[0]))
        except OverflowError:
            return _LAST

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy or pickle it as a message that a program made, which belongs to no worker."""
        return _restored, (self.id, self.stream, self.group, list(self.flat), self.failures)

    def _not_utf8(self) -> "DecodeError":
        errors = (not_utf8(name, value) for name, value in self.raw.items())
        error = next((one for one in errors if one is not None), DecodeError("the message is not UTF-8"))
        error.message = self
        return error

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

    def __init__(self, reason: str, *, public: str = "") -> None:
        super().__init__(reason)
        #: The reason without the content of the message, which may be private: for the log.
        self.public = public or reason
        #: The message whose text could not be read, where a handler looked at it.
        self.message: Message | None = None


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


def _restored(message_id: str, stream: str, group: str, flat: list[bytes], failures: int) -> Message:
    message = Message(message_id, stream, group, deliveries=failures + 1)
    message.flat = flat
    return message


def not_utf8(name: bytes, value: bytes) -> DecodeError | None:
    """Return what is wrong with a field of which text is wanted; None when it is UTF-8."""
    for part, what in ((name, f"the name of field {name!r}"), (value, f"the value of field {decoded(name)!r}")):
        try:
            part.decode()
        except UnicodeDecodeError as error:
            return DecodeError(f"{what} is not UTF-8: {error.reason} at byte {error.start}")
    return None
