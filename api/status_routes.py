"""The state of the pool for people and dashboards, and pages about kinds of problems."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from .metrics import render
from .problems import KINDS, Problem
from .schemas import NO_CACHE, answers, json_response, problems
from .service import Service, ServiceDep

router = APIRouter()
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get(
    "/health",
    tags=["status"],
    summary="The state of pool, workers and groups",
    responses={
        200: {"content": {"application/json": {"example": {"state": "healthy"}}}},
        503: {"description": "down", "content": {"application/json": {"example": {"state": "down"}}}},
    },
)
async def health(service: ServiceDep) -> Response:
    """What `supervisor status --json` prints; 503 when Redis or the pool is down.

    Where no pool runs on this host, the state is that of the service alone.
    """
    state = _seen_from_here(service, await service.state())
    down = state["state"] == "down" or "error" in state["redis"]
    return json_response(state, 503 if down else 200, NO_CACHE)


@router.get(
    "/metrics",
    tags=["status"],
    summary="Figures for Prometheus",
    responses={200: {"content": {METRICS_TYPE: {"example": "supervisor_redis_up 1"}}}},
)
async def metrics(service: ServiceDep) -> Response:
    """Text format 0.0.4."""
    return Response(render(_seen_from_here(service, await service.state())), 200, NO_CACHE, METRICS_TYPE)


@router.get(
    "/v1/workers",
    tags=["status"],
    summary="The workers of this host's pool",
    responses=answers({"state": "healthy", "workers": []}),
)
async def list_workers(service: ServiceDep) -> Response:
    """The list is empty where no pool runs."""
    state = _seen_from_here(service, await service.state())
    return json_response({key: state.get(key, []) for key in ("state", "workers", "services")}, 200, NO_CACHE)


@router.get(
    "/problems/{kind}",
    tags=["problems"],
    summary="About a kind of problem",
    responses={200: {"content": {"text/plain": {"example": "Not found"}}}, **problems("not-found")},
)
async def read_problem(kind: str) -> Response:
    """Explain what the problem means and what to do."""
    found = KINDS.get(kind)
    if found is None:
        raise Problem("not-found", f"unknown kind; there are: {', '.join(KINDS)}")
    return PlainTextResponse(f"{found.title} ({found.status})\n\n{found.text}\n")


def _seen_from_here(service: Service, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the service alone where no pool runs on this host."""
    if state["pid"] is None and not service.paths.control.exists():
        return {**state, "state": "down" if "error" in state["redis"] else "healthy", "reason": "no pool on this host"}
    return state
