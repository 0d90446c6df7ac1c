"""Probes for orchestrators, and the state of the pool for people and dashboards.

- `/livez`: the process runs. It never uses Redis.
- `/readyz`: messages can be published here and, where a pool runs on this host, handled. The workers count only when
  the pool's control socket exists, so `supervisor api` alone is ready without workers.
- `/startupz`: `/readyz` was 200 once.

The status code is the answer; `?verbose` prints the reasons.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse, Response

from .metrics import render
from .problems import KINDS, Problem
from .schemas import answers, json_response, problems
from .service import PULSE_LIMIT_S, Pulse, Service, ServiceDep

router = APIRouter()
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Verbose = Annotated[str | None, Query(description="Print a line with the reason for each part")]
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"example": "ok"}}},
    503: {"content": {"text/plain": {"example": "failed"}}},
}
_NO_CACHE = {"Cache-Control": "no-store"}


def _checks(pulse: Pulse | None) -> list[tuple[str, str]]:
    """Return (part, what is wrong with it) pairs; an empty text means that the part is well."""
    if pulse is None:
        return [("redis", "no answer in time")]
    found = [("redis", pulse.redis_error)]
    if pulse.pool_error:
        found.append(("workers", pulse.pool_error))
    elif pulse.pool is not None:
        ready, total = pulse.workers
        draining = pulse.pool["state"] == "draining"
        trouble = f"{ready} of {total} are ready" if total and not ready else "the pool is draining" if draining else ""
        found.append(("workers", trouble))
    return found


async def _ready(service: Service) -> list[tuple[str, str]]:
    checks = _checks(await service.pulse.get(PULSE_LIMIT_S + 0.05))
    if service.stopping.is_set():
        checks.append(("service", "the service is stopping"))
    service.started = service.started or not any(trouble for _, trouble in checks)
    return checks


def _answer(checks: list[tuple[str, str]], verbose: str | None) -> Response:
    good = not any(trouble for _, trouble in checks)
    lines = [f"[-]{name} failed: {trouble}" if trouble else f"[+]{name} ok" for name, trouble in checks]
    verdict = "ok" if good else "failed"
    text = "\n".join([*lines, verdict, ""]) if verbose is not None else verdict
    return PlainTextResponse(text, 200 if good else 503, _NO_CACHE)


@router.get("/livez", tags=["probes"], responses={200: _TEXT[200]}, summary="Is the process alive?")
async def livez(verbose: Verbose = None) -> Response:
    """200 whenever the service answers."""
    return _answer([("process", "")], verbose)


@router.get("/readyz", tags=["probes"], responses=_TEXT, summary="Can the service do its work?")
async def readyz(service: ServiceDep, verbose: Verbose = None) -> Response:
    """503 while Redis does not answer, or no worker of this host's pool is ready."""
    return _answer(await _ready(service), verbose)


@router.get("/startupz", tags=["probes"], responses=_TEXT, summary="Was the service ready once?")
async def startupz(service: ServiceDep, verbose: Verbose = None) -> Response:
    """503 until the service was ready for the first time."""
    if service.started:
        return _answer([("startup", "")], verbose)
    return _answer(await _ready(service), verbose)


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
    return json_response(state, 503 if down else 200, _NO_CACHE)


@router.get(
    "/metrics",
    tags=["status"],
    summary="Figures for Prometheus",
    responses={200: {"content": {METRICS_TYPE: {"example": "supervisor_redis_up 1"}}}},
)
async def metrics(service: ServiceDep) -> Response:
    """Text format 0.0.4."""
    return Response(render(_seen_from_here(service, await service.state())), 200, _NO_CACHE, METRICS_TYPE)


@router.get(
    "/v1/workers",
    tags=["status"],
    summary="The workers of this host's pool",
    responses=answers({"state": "healthy", "workers": []}),
)
async def list_workers(service: ServiceDep) -> Response:
    """The list is empty where no pool runs."""
    state = _seen_from_here(service, await service.state())
    return json_response({key: state.get(key, []) for key in ("state", "workers", "services")}, 200, _NO_CACHE)


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
