"""Traces what the HTTP service publishes, where the project's settings name the tracing of handlers."""

from fastapi import FastAPI

from supervisor.settings.model import Settings

_MODULE = "supervisor.contrib.opentelemetry"


def trace_requests(app: FastAPI, settings: Settings) -> None:
    """Have publishes belong to the traces of their requests. Raises HandlerError without OpenTelemetry."""
    if any(name.partition(":")[0] == _MODULE for name in settings.middleware):
        from supervisor.contrib.opentelemetry import RequestContext, instrument_publishers

        instrument_publishers()
        app.add_middleware(RequestContext)
