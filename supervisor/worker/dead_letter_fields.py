"""What a dead letter holds: the message whole, and why it was given up. Pure."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

from supervisor.core.dead_letter import FIELD_PREFIX
from supervisor.messages import DecodeError
from supervisor.text import error_summary

if TYPE_CHECKING:
    from supervisor.broker.command_connection import Argument
    from supervisor.core.outcome import Crash, Dead
    from supervisor.messages import Message

#: The end of a traceback is where the error is.
TRACEBACK_CHARS_MAX = 8_000


def dead_letter(
    message: Message,
    outcome: Dead,
    *,
    error: BaseException | None,
    crash: Crash | None,
    worker: str,
    handler: str,
    now_ms: int,
) -> list[Argument]:
    """Return the dead letter as a flat list of field names and values, as XADD takes them."""
    letter: list[Argument] = ["id", message.id, "reason", _utf8(outcome.reason), "deliveries", outcome.attempts]
    letter += ["handler", handler, "worker", worker, "dead_at_ms", now_ms]
    if error is not None:
        letter += ["error", _utf8(error_summary(error))]
        if not (isinstance(error, DecodeError) and error.message is None):  # it would show the worker's own frames
            text = "".join(traceback.format_exception(error))
            letter += ["traceback", _utf8(text[-TRACEBACK_CHARS_MAX:])]
    if crash is not None:
        letter += ["error", crash.text, "signal", crash.signal, "stack", _utf8(crash.stack)]
        letter += [] if crash.exit_code is None else ["exit_code", crash.exit_code]
    pairs = iter(message.flat)
    for name, value in zip(pairs, pairs, strict=True):
        letter += [FIELD_PREFIX + name, value]
    return letter


def _utf8(text: str) -> bytes:
    """Encode text; a lone surrogate, which JSON allows but UTF-8 does not, is written as an escape."""
    return text.encode(errors="backslashreplace")
