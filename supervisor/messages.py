"""`Message`, which a handler gets, and the exceptions that say how a message is settled.

Returning means done. Raising means retry with backoff, then dead letter; `Retry`, `Reject` and `BatchError` choose.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from supervisor.errors import SupervisorError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


#: A year.
AFTER_S_MAX = 31_536_000


class Message:
    """One delivery of an entry to a handler.

    The fields are decoded at their first use, so a handler that reads only the id does not pay for them.
    """

    __slots__ = ("_fields", "_flat", "deliveries", "group", "id", "stream")

    def __init__(
        self,
        id: str,  # noqa: A002 - Redis's own word for it
        stream: str,
        group: str,
        fields: Mapping[str, str] | None = None,
        deliveries: int = 1,
        *,
        flat: Sequence[bytes] = (),
    ) -> None:
        """Make a message from `fields`, or from the flat names and values of Redis's reply."""
        #: The entry's id in the stream, `<Unix ms of the server>-<sequence>`.
        self.id = id
        self.stream = stream
        self.group = group
        #: The number of this attempt, from 1. Counts failed runs of the handler, not re-reads.
        self.deliveries = deliveries
        self._fields = None if fields is None else dict(fields)
        self._flat = flat

    @property
    def fields(self) -> dict[str, str]:
        """The entry's fields. Raises DecodeError when one is not UTF-8."""
        if self._fields is None:
            self._fields = decode_fields(self._flat)
        return self._fields

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
    """

    def __init__(self, failed: Mapping[str, BaseException]) -> None:
        super().__init__(f"{len(failed)} messages of the batch failed")
        self.failed = dict(failed)


def decode_fields(flat: Sequence[bytes]) -> dict[str, str]:
    """Turn Redis's flat `name, value, name, value` into a dict. Raises DecodeError when it is not UTF-8."""
    pairs = iter(flat)
    try:
        return {name.decode(): value.decode() for name, value in zip(pairs, pairs, strict=True)}
    except UnicodeDecodeError as error:
        raise DecodeError(f"the message is not UTF-8: {error}") from None
