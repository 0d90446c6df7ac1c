"""How Schemathesis sends bodies that it does not know; imported by it alone."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """Write each item of a list as a line of JSON."""
    if isinstance(value, list):
        return b"".join(json.dumps(item).encode() + b"\n" for item in value)
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()
