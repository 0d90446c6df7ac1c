"""Assembles the HTTP service: routes, error answers, the request guard, and a lifespan that needs no Redis."""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

from fastapi import FastAPI

from supervisor._version import __version__
from supervisor.fastapi import AppConnections
from supervisor.log import service_logger
from supervisor.settings.load import Loaded

from . import (
    board_routes,
    dashboard_page,
    dead_letter_routes,
    docs_page,
    explain_routes,
    later_routes,
    message_routes,
    overview_routes,
    pool_routes,
    probe_routes,
    problems,
    routers,
    status_routes,
    tail_routes,
)
from .checked_body import STRICT
from .head_requests import AnswerHead
from .http_figures import HttpFigures
from .request_guard import PROBES, RequestGuard
from .schemas import PROBLEM_CONTENT, PROBLEM_SCHEMA
from .schemas import problems as problem_answers
from .service import Service
from .tracing import trace_requests

_TAGS = [
    {"name": "streams", "description": "Publish, read history, follow"},
    {"name": "later", "description": "Messages for later, and schedules"},
    {"name": "dead letters", "description": "Messages that were given up: find, replay, remove"},
    {"name": "pool", "description": "Pause, resume, restart and scale: for the operator's token"},
    {"name": "status", "description": "The pool, its streams and groups"},
    {"name": "probes", "description": "For load balancers and orchestrators"},
    {"name": "problems", "description": "What errors mean"},
]
#: The statuses of errors begin with one of these: 404, 4XX, default.
_ERRORS = "45d"
#: For the routes of a project's router that has no tags.
_PROJECT = "project"

#: The modules whose routes are all below /v1.
_V1 = (
    board_routes,
    dead_letter_routes,
    explain_routes,
    later_routes,
    tail_routes,
    message_routes,
    overview_routes,
    pool_routes,
)
#: Probes and scrapes must not fail because of a parameter that they don't need.
_OTHERS = (probe_routes, status_routes, docs_page, dashboard_page)


def create_app(loaded: Loaded, figures: HttpFigures | None = None) -> FastAPI:
    """Return the application for these settings. It starts while Redis is down, and answers 503 until Redis is up.

    `figures` are those in which the connections count, too.
    Raises HandlerError for a router of the project that can't be used.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = Service(loaded)
        app.state.supervisor = AppConnections(service.publisher, service.redis)
        service.start()
        _stop_on_signal(service)
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
        generate_unique_id_function=lambda route: route.name,
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    trace_requests(app, loaded.settings)
    app.router.routes.extend(message_routes.plain_routes)
    for module in _V1:
        app.include_router(module.router, dependencies=STRICT)
    for module in _OTHERS:
        app.include_router(module.router)
    routers.mount(app, loaded)
    log = service_logger(loaded.settings, "api")
    app.state.http = figures = figures or HttpFigures()
    app.add_middleware(AnswerHead)
    app.add_middleware(RequestGuard, settings=loaded.settings, figures=figures, log=log)
    _describe(app, token=bool(loaded.settings.api.token or loaded.settings.api.token_file))
    return app


def _describe(app: FastAPI, *, token: bool) -> None:
    """Complete the OpenAPI description: problem documents in place of FastAPI's own errors, tags, and the token."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        _add_problems(schema)
        _add_tags(schema)
        if token:
            schemes = schema["components"].setdefault("securitySchemes", {})  # a project's router may have its own
            schemes["token"] = {"type": "http", "scheme": "bearer"}
            schema["security"] = [{"token": []}]
            for path in (*PROBES, "/problems/{kind}"):
                schema["paths"][path]["get"]["security"] = []
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_problems(schema: dict[str, Any]) -> None:
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    schemas.setdefault("Problem", PROBLEM_SCHEMA)
    for operation in _operations(schema):
        answers = operation["responses"]
        if "application/json" in answers.get("422", {}).get("content", {}):
            answers["422"] = problem_answers("invalid")[422]
        for status, answer in answers.items():
            if status[0] in _ERRORS:  # of a project's route, which answers as all do; it may be `4XX` or `default`
                answer.setdefault("content", PROBLEM_CONTENT)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


def _add_tags(schema: dict[str, Any]) -> None:
    """Declare the tags of the project's routes too, so that the page of all routes shows these."""
    for operation in _operations(schema):
        for tag in operation.setdefault("tags", [_PROJECT]):
            if all(tag != known["name"] for known in schema["tags"]):
                schema["tags"].append({"name": tag, "description": "Routes of the project"})


def _operations(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in schema["paths"].values() for operation in path.values()]


def _stop_on_signal(service: Service) -> None:
    """Have the signal that ends the server also end the event streams, for which the server would wait."""
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
