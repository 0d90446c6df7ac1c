"""Probes for orchestrators.

- `/livez`: the process runs. It never uses Redis.
- `/readyz`: messages can be published here and, where a pool runs on this host, handled. The workers count only when
  the pool's control socket exists, so `supervisor api` alone is ready without workers.
- `/startupz`: `/readyz` was 200 once.

The status code is the answer; `?verbose` prints the reasons.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse, Response
from pydantic import WithJsonSchema

from supervisor.core.cut_off import SETTLED

from .schemas import NO_CACHE, problems, text_answer
from .service import PROBE_LIMIT_S, Pulse, Service, ServiceDep
from .snapshots import TOO_BUSY, PartHealth

router = APIRouter()
#: It may have any value, or none, any number of times.
Verbose = Annotated[
    str | None, WithJsonSchema({}), Query(description="Print a line with the reason for each part, whatever its value")
]
Part = Literal["redis", "workers", "keeper", "paused", "reading", "service"]
Exclude = Annotated[Sequence[Part], Query(description="Parts that do not count; may be repeated")]
_OK: dict[int | str, dict[str, Any]] = {200: text_answer("text/plain", "ok"), **problems()}
_OK_OR_FAILED = {**_OK, 503: text_answer("text/plain", "failed", description="Not ready")}


#: A keeper renews its lease every few seconds, and has lost it after ten.
KEEPER_LATE_S = 20.0


@dataclass(frozen=True, slots=True)
class Check:
    """One part of a probe."""

    name: str
    #: What is wrong with it; empty: nothing.
    failure: str = ""
    #: A note on a part that is well.
    note: str = ""


def _checks(pulse: Pulse | None) -> list[Check]:
    if pulse is None:
        return [Check("redis", "not known yet")]
    checks = [_check("redis", pulse.redis)]
    if pulse.pool is None:
        return [*checks, _check("workers", pulse.arbiter)] if pulse.arbiter.error else checks
    ready, total = pulse.workers
    draining = pulse.pool["state"] == "draining"
    failure = "the pool is draining" if draining else ""
    if not ready:
        failure = f"{ready} of {total} are ready" if total else "there are none: `supervisor scale` starts some"
    checks.append(_check("workers", replace(pulse.arbiter, error=pulse.arbiter.error or failure)))
    if failure := _keeper_failure(pulse):
        checks.append(Check("keeper", failure))
    if since := pulse.pool.get("paused_since"):
        checks.append(Check("paused", f"no message is started since {since}, until `supervisor resume`"))
    for one in pulse.pool.get("cut_off", ()):
        if one["workers"] == one["of"] and not pulse.redis.error:
            what = "is not settled" if SETTLED in one["reason"] else "is not read"
            checks.append(Check("reading", f"{one['stream']} / {one['group']} {what}: {one['reason']}"))
    return checks


def _keeper_failure(pulse: Pulse) -> str:
    """Return what is wrong with the keeper: without it, dead hosts' messages stay and the lease of this one ends."""
    keeper = next((one for one in (pulse.pool or {})["services"] if one["name"] == "keeper"), None)
    if keeper is None or keeper["state"] in ("EMPTY", "BACKOFF", "FAILED"):
        left = (keeper or {}).get("last_exit")
        return f"it is not running; its last exit: {left['reason']}" if left else "it is not running"
    age_s = keeper["beat_age_s"] or 0.0
    if age_s > KEEPER_LATE_S and not pulse.redis.error:
        return f"it has done nothing for {age_s:.0f} s"
    return ""


def _check(name: str, health: PartHealth) -> Check:
    if not health.busy or health.error:
        return Check(name, health.error)
    return Check(name, note=f", as of {time.monotonic() - health.at_s:.0f} s ago: {TOO_BUSY}")


async def _ready(service: Service) -> list[Check]:
    checks = _checks(await service.pulse.get(PROBE_LIMIT_S))
    if service.stopping.is_set():
        checks.append(Check("service", "the service is stopping"))
    service.started = service.started or not any(check.failure for check in checks)
    return checks


def _answer(checks: Sequence[Check], verbose: str | None, exclude: Sequence[str] = ()) -> Response:
    good = not any(check.failure and check.name not in exclude for check in checks)
    verdict = "ok" if good else "failed"
    text = "\n".join([*(_line(check, exclude) for check in checks), verdict, ""]) if verbose is not None else verdict
    return PlainTextResponse(text, 200 if good else 503, NO_CACHE)


def _line(check: Check, exclude: Sequence[str]) -> str:
    if not check.failure:
        return f"[+]{check.name} ok{check.note}"
    sign, verdict = ("+", "excluded") if check.name in exclude else ("-", "failed")
    return f"[{sign}]{check.name} {verdict}: {check.failure}"


@router.get("/livez", tags=["probes"], response_class=PlainTextResponse, responses=_OK, summary="Is the process alive?")
async def livez(verbose: Verbose = None) -> Response:
    """200 whenever the service answers."""
    return _answer([Check("process")], verbose)


@router.get(
    "/readyz",
    tags=["probes"],
    response_class=PlainTextResponse,
    responses={**_OK_OR_FAILED, **problems("invalid")},
    summary="Can the service do its work?",
)
async def readyz(service: ServiceDep, verbose: Verbose = None, exclude: Exclude = ()) -> Response:
    """503 while Redis does not answer, or this host's pool is paused, has no ready worker or no keeper, or can't read a
    group.

    A machine that is too busy to tell repeats its last answer.
    """
    return _answer(await _ready(service), verbose, exclude)


@router.get(
    "/startupz",
    tags=["probes"],
    response_class=PlainTextResponse,
    responses=_OK_OR_FAILED,
    summary="Was the service ready once?",
)
async def startupz(service: ServiceDep, verbose: Verbose = None) -> Response:
    """503 until the service was ready for the first time."""
    if service.started:
        return _answer([Check("startup")], verbose)
    return _answer(await _ready(service), verbose)
