"""Hands the trace of a request on to the messages that it publishes.

Where the project's settings name the tracing of handlers, OpenTelemetry does that. Otherwise the headers `traceparent`
and `tracestate` of a publish become fields of its messages, so that a consumer that traces continues the trace.
"""

import re
from collections.abc import Mapping

from fastapi import FastAPI, Request

from supervisor.settings.model import Settings

_MODULE = "supervisor.contrib.opentelemetry"
#: W3C Trace Context, 3.2; a later version may have more at the end.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[ -~]*)?")
_TRACESTATE_CHARACTERS_MAX = 512


def trace_requests(app: FastAPI, settings: Settings) -> None:
    """Have publishes belong to the traces of their requests. Raises HandlerError without OpenTelemetry."""
    app.state.traced = any(name.partition(":")[0] == _MODULE for name in settings.middleware)
    if app.state.traced:
        from supervisor.contrib.opentelemetry import RequestContext, instrument_publishers

        instrument_publishers()
        app.add_middleware(RequestContext)


def trace_fields(request: Request) -> Mapping[str, str]:
    """Return the fields that continue the trace of a request, if it has one and OpenTelemetry does not add them."""
    parent = request.headers.get("traceparent")
    if parent is None or request.app.state.traced or not _TRACEPARENT.fullmatch(parent):
        return {}
    state = request.headers.get("tracestate", "")
    more = {"tracestate": state} if 0 < len(state) <= _TRACESTATE_CHARACTERS_MAX and state.isprintable() else {}
    return {"traceparent": parent, **more}
