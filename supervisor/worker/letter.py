"""What a dead letter holds: the message whole, and why it was given up. Pure."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from supervisor.core.outcome import summary

if TYPE_CHECKING:
    from supervisor.broker.wire import Argument
    from supervisor.worker.delivery import Delivery

#: The message's own fields keep their names behind this, so that none clashes with ours.
FIELD_PREFIX = b"field:"
#: The end of a traceback is where the error is.
TRACEBACK_CHARS_MAX = 8_000


def dead_letter(
    delivery: Delivery,
    *,
    reason: str,
    error: BaseException | None,
    attempts: int,
    worker: str,
    handler: str,
    now_ms: int,
) -> list[Argument]:
    """The names and values of the dead letter's entry, flat as XADD wants them."""
    letter: list[Argument] = ["id", delivery.id, "reason", reason, "deliveries", attempts]
    letter += ["handler", handler, "worker", worker, "dead_at_ms", now_ms]
    if error is not None:
        text = "".join(traceback.format_exception(error))
        letter += ["error", summary(error), "traceback", text[-TRACEBACK_CHARS_MAX:]]
    pairs = iter(delivery.flat)
    for name, value in zip(pairs, pairs, strict=True):
        letter += [FIELD_PREFIX + name, value]
    return letter
