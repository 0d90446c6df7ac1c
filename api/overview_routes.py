"""The figures of the streams and groups that have handlers: `supervisor streams` over HTTP."""

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response
from redis.asyncio import Redis

from supervisor.broker import inspect
from supervisor.errors import UsageError
from supervisor.fastapi import RedisDep
from supervisor.overview import overview
from supervisor.status import RedisStatus

from .pool_replies import PendingList, PendingOfGroup
from .read_route import ReadRoute
from .replies import GroupList, StreamList
from .schemas import Group, Stream, answers, json_response
from .service import ServiceDep, refuse_without_redis

router = APIRouter(prefix="/v1", tags=["status"], route_class=ReadRoute)
PendingCount = Annotated[int, Query(ge=1, le=10_000, description="The greatest number, the oldest first")]


@router.get(
    "/streams",
    summary="The streams that have handlers",
    responses=answers(StreamList, "invalid", "wrong-type", "redis-unavailable"),
)
async def list_streams(service: ServiceDep, redis: RedisDep) -> Response:
    """What `supervisor streams --json` prints: each stream with all its groups, including those of other programs."""
    redis_status = await redis_status_of(service)
    own = [(group["stream"], group["group"]) for group in redis_status.groups]
    names = sorted({stream for stream, _ in own})
    streams = await overview(redis, service.settings, names, own)
    return json_response({"streams": streams, "problems": redis_status.problems})


@router.get(
    "/groups",
    summary="The groups that have handlers",
    responses=answers(GroupList, "invalid", "redis-unavailable"),
)
async def list_groups(service: ServiceDep) -> Response:
    """Lag, pending messages, oldest entry and dead letters of each group."""
    redis_status = await redis_status_of(service)
    return json_response({"groups": redis_status.groups, "problems": redis_status.problems})


@router.get(
    "/pending",
    summary="Unsettled messages of all groups that have handlers",
    responses=answers(PendingList, "invalid", "wrong-type", "redis-unavailable"),
)
async def list_pending(service: ServiceDep, redis: RedisDep, count: PendingCount = 100) -> Response:
    """`count` is for each group."""
    redis_status = await redis_status_of(service)
    groups = [await _pending(redis, group["stream"], group["group"], count) for group in redis_status.groups]
    return json_response({"groups": groups, "problems": redis_status.problems})


@router.get(
    "/streams/{stream:name}/groups/{group:name}/pending",
    summary="Unsettled messages of a group",
    responses=answers(PendingOfGroup, "invalid", "wrong-type", "redis-unavailable"),
)
async def list_pending_of_group(stream: Stream, group: Group, redis: RedisDep, count: PendingCount = 100) -> Response:
    """What `supervisor pending --json` prints: which consumer holds each message, and when its next run is due."""
    return json_response(await _pending(redis, stream, group, count))


async def _pending(redis: Redis, stream: str, group: str, count: int) -> dict[str, Any]:
    try:
        messages = [info.as_dict() for info in await inspect.pending(redis, stream, group, count)]
    except UsageError:  # no such group: no worker has created it yet, or it has no handler
        messages = []
    return {"stream": stream, "group": group, "pending": messages}


async def redis_status_of(service: ServiceDep) -> RedisStatus:
    """Return what Redis says of the groups that have handlers. Raises Problem when it does not answer."""
    refuse_without_redis(await service.state())
    return service.redis_status.peek() or RedisStatus({})
