"""Classifies the messages of a worker's own pending list by what is to be done with them. Pure.

After a crash the pending list of the same consumer name holds three kinds of messages: those that wait for a retry,
those whose handler may have been running (suspects: one of them may be what ended the process) and those that had
only been read. Shared memory tells the last two apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from supervisor.core.ids import parse_id
from supervisor.core.retry_record import RetryRecord, parse_retry

if TYPE_CHECKING:
    from supervisor.messages import Message


@dataclass(slots=True)
class Adopted:
    """The pending messages by what is to be done."""

    #: Only read: run as usual.
    plain: list[Message] = field(default_factory=list)
    #: May have been running at the crash: run one at a time.
    suspects: list[Message] = field(default_factory=list)
    #: Failed before and not due at the crash: (message, seconds until it is due).
    waiting: list[tuple[Message, float]] = field(default_factory=list)

    def add(self, other: Adopted) -> None:
        """Add what was found in another list of the same consumer."""
        self.plain += other.plain
        self.suspects += other.suspects
        self.waiting += other.waiting

    def leave_out(self, entries: Iterable[bytes]) -> None:
        """Leave out the messages of these entries."""
        known = set(entries)
        self.plain = [message for message in self.plain if message.entry not in known]
        self.suspects = [message for message in self.suspects if message.entry not in known]
        self.waiting = [one for one in self.waiting if one[0].entry not in known]


def classify(
    found: list[Message],
    records: list[bytes | None],
    started: tuple[int, int],
    now_ms: int,
    often: AbstractSet[bytes] = frozenset(),
) -> Adopted:
    """Sort the pending `found`; `records` are their entries in the retries hash, in the same order.

    `started` is the highest id whose handler the predecessor had started. What failed before keeps its record while
    it runs again: when it is due, it may have been running at the crash like any other. `often` are entries that may
    have been running whatever `started` says.
    """
    adopted = Adopted()
    for message, record in zip(found, records, strict=True):
        suspect = parse_id(message.entry) <= started or message.entry in often
        if record is not None:
            retry = parse_retry(record) or RetryRecord(0, 0, 0)
            message.failures, message.recorded = retry.attempts, True
            wait_s = retry.wait_ms(now_ms) / 1000
            if wait_s > 0 or not suspect:
                adopted.waiting.append((message, wait_s))
                continue
        if suspect:
            adopted.suspects.append(message)
        else:
            adopted.plain.append(message)
    return adopted
