"""What Redis holds of the streams and groups that have handlers: the figures of `supervisor streams`."""

from __future__ import annotations

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
    """Length, first and last id, and all groups of each, also those of others."""
    found = await _groups(service)
    names = list(dict.fromkeys(group["stream"] for group in found))
    infos = await inspect.streams(redis, names) if names else []
    return json_response({"streams": [info.as_dict() for info in infos]})


@router.get(
    "/groups",
    operation_id="list_groups",
    summary="The groups that have handlers",
    responses={200: {"content": {"application/json": {"example": {"groups": []}}}}, **problems("redis-unavailable")},
)
async def groups(service: ServiceDep) -> Response:
    """Lag, pending, oldest and dead letters of each."""
    return json_response({"groups": await _groups(service)})


async def _groups(service: ServiceDep) -> list[dict[str, Any]]:
    state = await service.state()
    refuse_without_redis(state)
    found: list[dict[str, Any]] = state["groups"]
    return found
