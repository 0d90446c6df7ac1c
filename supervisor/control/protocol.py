"""The control socket's protocol: one JSON object a line, a request and its answer.

`{"cmd": "status", ...}` is answered with `{"ok": true, "data": {...}}` or `{"ok": false, "error": "..."}`.
"""

from __future__ import annotations

import json
from typing import Any

from supervisor.errors import UsageError

#: A line, with its newline, is no longer than this.
LINE_BYTES_MAX = 64 * 1024
#: An answer may be longer: a pool of 256 workers has much to say.
ANSWER_BYTES_MAX = 1024 * 1024


def encode(message: dict[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode_request(line: bytes) -> tuple[str, dict[str, Any]]:
    """(command, its arguments). Raises UsageError for anything but an object with a `cmd`."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError("the request is no JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("cmd"), str):
        raise UsageError('the request must be an object with a "cmd"')
    arguments = {str(key): value for key, value in message.items() if key != "cmd"}
    return message["cmd"], arguments
