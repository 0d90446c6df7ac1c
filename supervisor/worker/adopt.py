"""What a worker finds in its own pending list, and what is to be done with each. Pure.

After a crash the pending list of the same consumer name holds three kinds of messages: those that
wait for a retry, those whose handler may have been running (suspects: one of them may be what ended
the process) and those that had only been read. Shared memory tells the last two apart.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from supervisor.core.ids import parse_id
from supervisor.worker.delivery import Delivery


@dataclass(slots=True)
class Adopted:
    """The pending messages by what is to be done."""

    #: Only read: run as usual.
    plain: list[Delivery] = field(default_factory=list)
    #: Perhaps running at the crash: run one at a time.
    suspects: list[Delivery] = field(default_factory=list)
    #: Shared memory has named the suspects, so there was a crash; else they are only thought to be some.
    crashed: bool = False
    #: A crash was charged to the message that was marked as running alone.
    charged: bool = False
    #: Failed before and not due at the crash: (delivery, seconds until it is due).
    waiting: list[tuple[Delivery, float]] = field(default_factory=list)


def read_retry(record: bytes, now_ms: int) -> tuple[int, int]:
    """How often the message failed, and how long it still has to wait, in ms.

    Never longer than it was to at first: the clock may have been put back since then. Anybody can write to a hash:
    what no worker has written says nothing.
    """
    try:
        attempts, due_ms, *delay_ms = map(int, record.split(b":"))
    except ValueError:
        return 0, 0
    return attempts, max(0, min([due_ms - now_ms, *delay_ms]))


def sort_out(
    found: list[Delivery],
    records: list[bytes | None],
    started: tuple[int, int],
    now_ms: int,
    often: AbstractSet[bytes] = frozenset(),
) -> Adopted:
    """Sort the pending `found`; `records` are their entries in the retries hash, in the same order.

    `started` is the highest id whose handler the predecessor had started. What failed before keeps its
    record while it runs again: when it is due, it may have been running at the crash like any other.
    `often`: those that may have been running whatever `started` says.
    """
    adopted = Adopted()
    for delivery, record in zip(found, records, strict=True):
        suspect = parse_id(delivery.id) <= started or delivery.id in often
        if record is not None:
            delivery.failed_before, wait_ms = read_retry(record, now_ms)
            delivery.recorded = True
            wait_s = wait_ms / 1000
            if wait_s > 0 or not suspect:
                adopted.waiting.append((delivery, wait_s))
                continue
        if suspect:
            adopted.suspects.append(delivery)
        else:
            adopted.plain.append(delivery)
    return adopted
