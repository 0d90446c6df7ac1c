"""Operate the pool of this host over HTTP: pause, resume, restart, scale. Each is a command of the control socket."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from supervisor.control.client import has_socket
from supervisor.control.client import request as ask_arbiter
from supervisor.errors import AnswerLostError, NotRunningError, SupervisorError
from supervisor.shared_state import SLOTS_MAX

from .access import audited
from .pool_replies import Paused, RestartAccepted, Scaled
from .problems import Problem
from .schemas import answers, json_response, only_json
from .service import Service, ServiceDep

router = APIRouter(prefix="/v1", tags=["pool"])
#: The arbiter answers at once; it only has to be scheduled.
ANSWER_LIMIT_S = 2.0
_REFUSALS = ("invalid", "forbidden", "no-pool", "outcome-unknown", "pool-refused")
#: Which member of `/health` shows whether a command was carried out.
_SHOWN_BY = {"pause": "paused", "resume": "paused", "restart": "last_operation", "scale": "workers"}


class Scale(BaseModel):
    """The body of `:scale`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    workers: int = Field(ge=0, le=SLOTS_MAX, description="How many workers there should be")


@router.post(
    "/pool:pause",
    summary="Start no messages until the pool is resumed",
    responses=answers(Paused, *_REFUSALS),
)
async def pause_pool(request: Request, service: ServiceDep) -> Response:
    """As `supervisor pause`: what runs is finished. Each worker obeys within half a second."""
    return await _change(request, service, "pause")


@router.post(
    "/pool:resume",
    summary="Start messages again",
    responses=answers(Paused, *_REFUSALS),
)
async def resume_pool(request: Request, service: ServiceDep) -> Response:
    """As `supervisor resume`."""
    return await _change(request, service, "resume")


@router.post(
    "/pool:restart",
    status_code=202,
    summary="Replace all workers; code and settings are read again",
    responses=answers(RestartAccepted, *_REFUSALS, status=202),
)
async def restart_pool(request: Request, service: ServiceDep) -> Response:
    """As `supervisor restart`: `operation` and `last_operation` of `/health` show how far it is and how it ended.

    The services follow the workers, this one too: requests under way are finished.
    """
    return await _change(request, service, "restart", status=202)


@router.post(
    "/pool:scale",
    summary="Change the number of workers",
    responses=answers(Scaled, "malformed-json", "media-type", *_REFUSALS),
    dependencies=[Depends(only_json)],
)
async def scale_pool(request: Request, service: ServiceDep, scale: Annotated[Scale, Body()]) -> Response:
    """As `supervisor scale`: new workers start at once, surplus ones finish what they have in hand."""
    return await _change(request, service, "scale", n=scale.workers)


async def _change(request: Request, service: Service, command: str, *, status: int = 200, **args: Any) -> Response:
    """Have the arbiter carry out a command, log it, and answer with the arbiter's answer."""
    if not has_socket(service.paths):
        raise Problem("no-pool")
    with audited(request, f"pool:{command}", workers=args.get("n")) as fields:
        try:
            answer = await asyncio.to_thread(ask_arbiter, service.paths, command, patience_s=ANSWER_LIMIT_S, **args)
        except AnswerLostError as error:
            advice = f"the pool may have done it, or do it later. See `{_SHOWN_BY[command]}` of /health, or repeat it"
            raise Problem("outcome-unknown", f"{error}; {advice}") from None
        except NotRunningError as error:
            raise Problem("no-pool", str(error)) from None
        except SupervisorError as error:
            raise Problem("pool-refused", str(error)) from None
        fields["before"] = answer.get("before")
    return json_response(answer, status)
