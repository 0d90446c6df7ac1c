"""What a handler gets (`Message`) and what it may raise to say how a message is settled.

Returning means done. Raising means retry with backoff, then dead letter; `Retry`, `Reject` and
`BatchError` say so in detail.
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

    The fields are decoded when they are first asked for: a handler that looks only at the id pays
    for no more.
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
        """Make one from `fields`, or from the flat names and values of Redis's reply."""
        #: The entry's id in the stream, `<Unix ms of the server>-<sequence>`.
        self.id = id
        self.stream = stream
        self.group = group
        #: Which attempt this is, from 1. Counts handler runs that failed, not re-reads.
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
        """The place of the message, not its content: that may be private."""
        return f"Message(id={self.id!r}, stream={self.stream!r}, group={self.group!r}, deliveries={self.deliveries})"


class Retry(SupervisorError):
    """Raise it to have the message delivered again after `after_s` seconds.

    Without `after_s` the configured backoff applies. It counts as an attempt. Raises UsageError for an
    `after_s` that is no time.
    """

    def __init__(self, reason: str = "asked for a retry", *, after_s: float | None = None) -> None:
        super().__init__(reason)
        if after_s is not None and not (isinstance(after_s, int | float) and 0 <= after_s <= AFTER_S_MAX):
            raise UsageError(f"Retry: after_s = {after_s!r} must be a number of seconds from 0 to {AFTER_S_MAX}")
        self.after_s = after_s


class Reject(SupervisorError):
    """Raise it to make the message a dead letter at once, with `reason`."""

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)


class DecodeError(Reject):
    """The entry does not fit what the handler asks for; it becomes a dead letter at once."""


class BatchError(SupervisorError):
    """Raise it from a batch handler: the messages named fail, all others are acked.

    Keys are message ids, values the exception that says how each is settled (`Retry`, `Reject`
    or any other).
    """

    def __init__(self, failed: Mapping[str, BaseException]) -> None:
        super().__init__(f"{len(failed)} messages of the batch failed")
        self.failed = dict(failed)


def decode_fields(flat: Sequence[bytes]) -> dict[str, str]:
    """Redis's flat `name, value, name, value` as a dict. Raises DecodeError when it is not UTF-8."""
    pairs = iter(flat)
    try:
        return {name.decode(): value.decode() for name, value in zip(pairs, pairs, strict=True)}
    except UnicodeDecodeError as error:
        raise DecodeError(f"the message is not UTF-8: {error}") from None
