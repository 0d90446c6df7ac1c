"""What Redis holds of the streams and groups that have handlers: the figures of `supervisor streams`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from supervisor.broker import inspect

from .service import RedisDep, ServiceDep, refuse_without_redis
from .shapes import json_response, problems

router = APIRouter(prefix="/v1", tags=["status"])


@router.get(
    "/streams",
    operation_id="list_streams",
    summary="The streams that have handlers",
    responses={
        200: {"content": {"application/json": {"example": {"streams": []}}}},
        **problems("wrong-type", "redis-unavailable"),
    },
)
async def streams(service: ServiceDep, redis: RedisDep) -> Response:
    """What `supervisor streams --json` prints: each with all its groups, also those that others made."""
    async with asyncio.timeout(service.limit_s):
        own = [(group["stream"], group["group"]) for group in await handled_groups(service)]
        infos = await inspect.streams(redis, sorted({stream for stream, _ in own})) if own else []
        members = [(info.stream, group) for info in infos for group in info.groups]
        groups = await inspect.groups(redis, sorted({*own, *members}))
    return json_response({"streams": [_stream(info, groups) for info in infos]})


def _stream(info: inspect.StreamInfo, groups: Iterable[inspect.GroupInfo]) -> dict[str, Any]:
    return {
        "stream": info.stream,
        "exists": info.exists,
        "length": info.length,
        "first_id": info.first_id or None,
        "last_id": info.last_id or None,
        "groups": [group.as_dict() for group in groups if group.stream == info.stream],
    }


@router.get(
    "/groups",
    operation_id="list_groups",
    summary="The groups that have handlers",
    responses={200: {"content": {"application/json": {"example": {"groups": []}}}}, **problems("redis-unavailable")},
)
async def groups(service: ServiceDep) -> Response:
    """Lag, pending, oldest and dead letters of each."""
    return json_response({"groups": await handled_groups(service)})


async def handled_groups(service: ServiceDep) -> list[dict[str, Any]]:
    """The figures of all groups that have handlers. Raises Problem when Redis can't be asked."""
    state = await service.state()
    refuse_without_redis(state)
    found: list[dict[str, Any]] = state["groups"]
    return found
