"""What a dead letter holds: the message whole, and why it was given up. Pure."""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING

from supervisor.errors import summary

if TYPE_CHECKING:
    from supervisor.broker.wire import Argument
    from supervisor.core.outcome import Crash, Dead
    from supervisor.worker.delivery import Delivery

#: The message's own fields keep their names behind this, so that none clashes with ours.
FIELD_PREFIX = b"field:"
#: More fields than this don't go through one call of a Lua script; they are kept as one field of JSON, bytes that
#: are not UTF-8 in it as Python's surrogateescape has them.
FIELDS_MAX = 3_000
FIELDS_JSON = b"fields_json"
#: The end of a traceback is where the error is.
TRACEBACK_CHARS_MAX = 8_000


def dead_letter(
    delivery: Delivery,
    outcome: Dead,
    *,
    error: BaseException | None,
    crash: Crash | None,
    worker: str,
    handler: str,
    now_ms: int,
) -> list[Argument]:
    """The names and values of the dead letter's entry, flat as XADD wants them."""
    letter: list[Argument] = ["id", delivery.origin, "reason", _utf8(outcome.reason), "deliveries", outcome.attempts]
    letter += ["handler", handler, "worker", worker, "dead_at_ms", now_ms]
    if error is not None:
        text = "".join(traceback.format_exception(error))
        letter += ["error", _utf8(summary(error)), "traceback", _utf8(text[-TRACEBACK_CHARS_MAX:])]
    if crash is not None:
        letter += ["error", crash.text, "signal", crash.signal, "stack", _utf8(crash.stack)]
        letter += [] if crash.exit_code is None else ["exit_code", crash.exit_code]
    pairs = iter(delivery.flat)
    fields = list(zip(pairs, pairs, strict=True))
    if len(fields) > FIELDS_MAX:
        return [*letter, FIELDS_JSON, json.dumps({_escaped(name): _escaped(value) for name, value in fields})]
    for name, value in fields:
        letter += [FIELD_PREFIX + name, value]
    return letter


def _utf8(text: str) -> bytes:
    """Half a surrogate pair, which any JSON may bring, has no UTF-8; it is shown as it would be typed."""
    return text.encode(errors="backslashreplace")


def _escaped(value: bytes) -> str:
    return value.decode(errors="surrogateescape")
