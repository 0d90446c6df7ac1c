"""What Schemathesis can't know of the service; imported by it alone."""

import atexit
import json
import os
import re
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis

#: What they ask for depends on the server and the handlers of the tests.
_RESERVED = re.compile(r"\.(test|example|invalid|localhost|local|onion|arpa)$")
_MARK = " no. "
_BODIES: Counter[str] = Counter()
_OF_THE_TESTS = ("wait_replicas", "wait_aof", "validate")


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """Write each item of a list as a line of JSON."""
    if isinstance(value, list):
        return b"".join(json.dumps(item).encode() + b"\n" for item in value)
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Count the bodies by their media type."""
    if case.media_type:
        _BODIES[case.media_type] += 1


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Give each request a key of its own, since a key that comes again with another body is refused.

    The id of a CloudEvent is such a key, too.
    """
    for name in [name for name in case.headers or () if name.lower() == "idempotency-key"]:
        if str(case.headers[name]).isprintable() and str(case.headers[name]).strip('" '):
            case.headers[name] = str(uuid.uuid4())
    query = case.query or {}
    for name in _OF_THE_TESTS:
        query.pop(name, None)
    if "after_s" in query:  # a description can't say that two parameters exclude each other
        query.pop("at", None)
    for event in case.body if isinstance(case.body, list) else [case.body]:
        # One event may stand in many places of a batch.
        if isinstance(event, dict) and "specversion" in event and isinstance(event.get("id"), str) and event["id"]:
            event["id"] = f"{event['id'].partition(_MARK)[0]}{_MARK}{uuid.uuid4()}"
    if isinstance(case.body, dict) and isinstance(email := case.body.get("email"), str):
        case.body["email"] = _RESERVED.sub(".net", email)


@atexit.register
def report() -> None:
    """Tell the caller how many bodies of each media type were sent."""
    Path(os.environ["CONTRACT_BODIES"]).write_text(json.dumps(_BODIES))
