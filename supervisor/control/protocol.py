"""The control socket's protocol: one JSON object per line, a request and its answer.

`{"cmd": "status", ...}` is answered with `{"ok": true, "data": {...}}` or `{"ok": false, "error": "..."}`.
"""

import json
from typing import Any

from supervisor.errors import UsageError

#: The longest request, with its newline.
LINE_BYTES_MAX = 64 * 1024
#: The longest answer; `status` of 256 workers is long.
ANSWER_BYTES_MAX = 1024 * 1024


def encode(message: dict[str, Any]) -> bytes:
    """Return the message as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode_request(line: bytes) -> tuple[str, dict[str, Any]]:
    """Return the command and its arguments. Raises UsageError for anything but an object with a `cmd`."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError("the request is not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("cmd"), str):
        raise UsageError('the request must be an object with a "cmd"')
    arguments = {str(key): value for key, value in message.items() if key != "cmd"}
    return message["cmd"], arguments
