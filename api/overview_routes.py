"""The figures of the streams and groups that have handlers: `supervisor streams` over HTTP."""

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from supervisor.fastapi import RedisDep
from supervisor.overview import overview

from .replies import GroupList, StreamList
from .schemas import answers, json_response
from .service import ServiceDep, refuse_without_redis

router = APIRouter(prefix="/v1", tags=["status"])


@router.get(
    "/streams",
    summary="The streams that have handlers",
    responses=answers(StreamList, "wrong-type", "redis-unavailable"),
)
async def list_streams(service: ServiceDep, redis: RedisDep) -> Response:
    """What `supervisor streams --json` prints: each stream with all its groups, including those of other programs."""
    async with asyncio.timeout(service.limit_s):
        own = [(group["stream"], group["group"]) for group in await handled_groups(service)]
        names = sorted({stream for stream, _ in own})
        return json_response({"streams": await overview(redis, service.settings, names, own)})


@router.get(
    "/groups",
    summary="The groups that have handlers",
    responses=answers(GroupList, "redis-unavailable"),
)
async def list_groups(service: ServiceDep) -> Response:
    """Lag, pending messages, oldest entry and dead letters of each group."""
    return json_response({"groups": await handled_groups(service)})


async def handled_groups(service: ServiceDep) -> list[dict[str, Any]]:
    """Return the figures of all groups that have handlers. Raises Problem when Redis does not answer."""
    state = await service.state()
    refuse_without_redis(state)
    found: list[dict[str, Any]] = state["groups"]
    return found
