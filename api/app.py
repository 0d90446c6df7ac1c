"""Puts the HTTP service together: routes, errors, the request guard, and a lifespan that needs no Redis."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from supervisor.version import __version__

from . import (
    dead_letter_routes,
    docs_page,
    explain_routes,
    message_routes,
    overview_routes,
    probe_routes,
    problems,
    tail_routes,
    users,
)
from .request_guard import PROBES, RequestGuard
from .schemas import PROBLEM_SCHEMA
from .schemas import problems as problem_answers
from .service import Service

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded

_TAGS = [
    {"name": "streams", "description": "Publish, read history, follow"},
    {"name": "dead letters", "description": "What was given up: found, put back to its group, removed"},
    {"name": "users", "description": "The example's producer"},
    {"name": "status", "description": "The pool, its streams and groups"},
    {"name": "probes", "description": "For load balancers and orchestrators"},
    {"name": "problems", "description": "What errors mean"},
]


def create_app(loaded: Loaded) -> FastAPI:
    """The application for these settings. It starts when Redis is down, and answers 503 until it is up."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = Service(loaded)
        _end_with_signals(service)
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="Supervisor",
        version=__version__,
        summary="A pool of workers for Redis Streams: publish, history, health, status",
        openapi_tags=_TAGS,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=docs_page.INTERACTIVE,
        redoc_url=None,
    )
    problems.install(app)
    # The longest addresses first: a stream's name may hold slashes.
    for module in (
        users,
        dead_letter_routes,
        explain_routes,
        tail_routes,
        message_routes,
        overview_routes,
        probe_routes,
        docs_page,
    ):
        app.include_router(module.router)
    app.add_middleware(RequestGuard, settings=loaded.settings.api)
    _describe(app, token=bool(loaded.settings.api.token))
    return app


def _describe(app: FastAPI, *, token: bool) -> None:
    """Add to the OpenAPI description the problem document, in place of FastAPI's own form of a bad request, and the
    token that all but the probes want."""
    generate = app.openapi
    invalid = problem_answers("invalid")[422]

    def openapi() -> dict[str, Any]:
        schema = generate()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault("Problem", PROBLEM_SCHEMA)
        for operation in [operation for path in schema["paths"].values() for operation in path.values()]:
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                operation["responses"]["422"] = invalid
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        if token:
            schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            schema["security"] = [{"token": []}]
            for path in (*PROBES, "/problems/{kind}"):
                schema["paths"][path]["get"]["security"] = []
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _end_with_signals(service: Service) -> None:
    """Let the signal that ends the server also end the streams that it would otherwise wait for."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        if not callable(before):
            continue

        def stop(received: int, frame: FrameType | None, before: Any = before) -> None:
            loop.call_soon_threadsafe(service.stopping.set)
            before(received, frame)

        signal.signal(number, stop)
