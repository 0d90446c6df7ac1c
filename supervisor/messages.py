"""What a handler gets (`Message`) and what it may raise to say how a message is settled.

Returning means done. Raising means retry with backoff, then dead letter; `Retry`, `Reject` and
`BatchError` say so in detail.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Message:
    """One delivery of an entry to a handler."""

    #: The entry's id in the stream, `<Unix ms of the server>-<sequence>`.
    id: str
    stream: str
    group: str
    fields: dict[str, str]
    #: Which attempt this is, from 1. Counts handler runs that failed, not re-reads.
    deliveries: int

    @property
    def published_at(self) -> datetime:
        """When Redis stored the entry, by the server's clock (UTC)."""
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)


class Retry(SupervisorError):
    """Raise it to have the message delivered again after `after_s` seconds.

    Without `after_s` the configured backoff applies. It counts as an attempt.
    """

    def __init__(self, reason: str = "asked for a retry", *, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Reject(SupervisorError):
    """Raise it to make the message a dead letter at once, with `reason`."""

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)


class BatchError(SupervisorError):
    """Raise it from a batch handler: the messages named fail, all others are acked.

    Keys are message ids, values the exception that says how each is settled (`Retry`, `Reject`
    or any other).
    """

    def __init__(self, failed: Mapping[str, BaseException]) -> None:
        super().__init__(f"{len(failed)} messages of the batch failed")
        self.failed = dict(failed)
