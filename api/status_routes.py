"""The state of the pool for people and dashboards, and pages about kinds of problems."""

import asyncio
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from supervisor.control.client import has_socket

from .checked_body import STRICT
from .html import page
from .metrics import render
from .problems import KINDS, Problem
from .replies import PoolState, WorkerList
from .schemas import NO_CACHE, answers, json_response, problems, text_answer
from .service import PROBE_LIMIT_S, Service, ServiceDep

router = APIRouter()


class _Metrics(Response):
    """Prometheus's text format."""

    media_type = "text/plain; version=0.0.4; charset=utf-8"


@router.get(
    "/health",
    tags=["status"],
    summary="The state of pool, workers and groups",
    responses={**answers(PoolState), 503: {"model": PoolState, "description": "The pool or Redis is down"}},
)
async def health(service: ServiceDep) -> Response:
    """What `supervisor status --json` prints; 503 when Redis or the pool is down.

    Where no pool runs on this host, the state is that of the service alone.
    """
    state = seen_from_here(service, await service.state(PROBE_LIMIT_S))
    down = state["state"] == "down" or "error" in state["redis"]
    return json_response(state, 503 if down else 200, NO_CACHE)


@router.get(
    "/metrics",
    tags=["status"],
    summary="Figures for Prometheus",
    response_class=_Metrics,
    responses={200: text_answer(_Metrics.media_type, "supervisor_redis_up 1"), **problems()},
)
async def metrics(request: Request, service: ServiceDep) -> Response:
    """Text format 0.0.4."""
    state, figures = await asyncio.gather(service.state(PROBE_LIMIT_S), service.figures())
    text = render(seen_from_here(service, state), figures, request.app.state.http, service.produced, service.tails)
    return _Metrics(text, 200, NO_CACHE)


@router.get(
    "/v1/workers",
    tags=["status"],
    summary="The workers of this host's pool",
    responses=answers(WorkerList, "invalid"),
    dependencies=STRICT,
)
async def list_workers(service: ServiceDep) -> Response:
    """The list is empty where no pool runs."""
    state = seen_from_here(service, await service.state())
    return json_response({key: state.get(key, []) for key in ("state", "workers", "services")}, 200, NO_CACHE)


@router.get(
    "/problems/{kind}",
    tags=["problems"],
    summary="About a kind of problem",
    response_class=HTMLResponse,
    responses={200: text_answer("text/html", "<h1>Not found</h1>"), **problems("not-found")},
)
async def read_problem(kind: str) -> Response:
    """Explain what the problem means and what to do."""
    problem_kind = KINDS.get(kind)
    if problem_kind is None:
        raise Problem("not-found", f"unknown kind; there are: {', '.join(KINDS)}")
    head = f"<p>Status {problem_kind.status}, code <code>{kind}</code></p>"
    return page(problem_kind.title, f"{head}<p>{escape(problem_kind.text)}</p>")


def seen_from_here(service: Service, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the service alone where no pool runs on this host."""
    if state["pid"] is None and not has_socket(service.paths):
        return {**state, "state": "down" if "error" in state["redis"] else "healthy", "reason": "no pool on this host"}
    return state
