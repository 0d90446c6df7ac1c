"""Collects streams with their groups into documents, for `supervisor streams` and the HTTP service."""

from collections.abc import Iterable, Sequence
from typing import Any

from redis.asyncio import Redis

from supervisor.broker import inspect
from supervisor.core.retention import Unsettled, held_by, retention_of
from supervisor.settings.model import Settings


async def overview(
    redis: Redis, settings: Settings, names: Sequence[str], pairs: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Return the streams with these names, each with its groups in Redis and those of `pairs`, the handlers'.

    Raises redis-py's errors, also for a key that is not a stream.
    """
    infos = await inspect.streams(redis, names) if names else []
    members = {(info.stream, group) for info in infos for group in info.groups}
    groups = await inspect.groups(redis, sorted({*pairs, *members}))
    now_ms = await inspect.server_time_ms(redis)
    return [_document(settings, info, [one for one in groups if one.stream == info.stream], now_ms) for info in infos]


def _document(
    settings: Settings, info: inspect.StreamInfo, groups: list[inspect.GroupInfo], now_ms: int
) -> dict[str, Any]:
    kept = retention_of(settings, info.stream)
    unsettled = [
        Unsettled(one.group, one.oldest_id, inspect.age_s(one.oldest_id, now_ms)) for one in groups if one.oldest_id
    ]
    return {
        "stream": info.stream,
        "exists": info.exists,
        "length": info.length,
        "first_id": info.first_id or None,
        "last_id": info.last_id or None,
        "retention": {
            "max_age_s": kept.max_age_s,
            "max_length": kept.max_length,
            "held_by": held_by(kept, info.length, info.first_id, unsettled),
        },
        "groups": [group.as_dict() for group in groups],
    }
