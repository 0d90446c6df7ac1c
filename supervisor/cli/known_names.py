"""The streams and groups of the handlers, and the answer that all commands give to an unknown name.

A name is known when Redis has it, when a handler declares it, and for a group also when it has left dead letters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supervisor.errors import HandlerError, UsageError
from supervisor.keys import dead_key
from supervisor.text import decoded, did_you_mean

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from supervisor.settings.load import Loaded


async def require_stream(loaded: Loaded, redis: Redis, stream: str) -> None:
    """Raise UsageError, with what may have been meant, for an unknown stream."""
    if await redis.exists(stream):
        return
    names = {name for name, _ in await _declared(loaded)}
    if stream not in names:
        near = did_you_mean(stream, names) or "; `supervisor streams` shows those of the handlers"
        raise UsageError(f"the stream {stream!r} does not exist{near}")


async def require_group(loaded: Loaded, redis: Redis, stream: str, group: str) -> None:
    """Raise UsageError, with what may have been meant, for an unknown stream or group."""
    if await redis.exists(dead_key(stream, group)):
        return
    await require_stream(loaded, redis, stream)
    rows: Any = await redis.xinfo_groups(stream) if await redis.exists(stream) else []
    names = {decoded(row["name"]) for row in rows}
    if group in names:
        return
    names |= {name for of, name in await _declared(loaded) if of == stream}
    if group not in names:
        listed = f" (there are: {', '.join(sorted(names))})" if names else ""
        raise UsageError(f"stream {stream!r} has no group {group!r}{did_you_mean(group, names) or listed}")


async def handled_pairs(loaded: Loaded) -> list[tuple[str, str]]:
    """Return (stream, group) pairs from the running pool, or else from the handlers."""
    from supervisor.control.client import request
    from supervisor.errors import SupervisorError
    from supervisor.settings.paths import pool_paths
    from supervisor.status import configured_pairs

    try:
        status = request(pool_paths(loaded.settings), "status")
        return [(stream, group) for stream, group in status["consumers"]]
    except (SupervisorError, KeyError):
        return configured_pairs(loaded.settings, loaded.root)


async def _declared(loaded: Loaded) -> list[tuple[str, str]]:
    try:
        return await handled_pairs(loaded)
    except HandlerError:  # a name in Redis needs no handlers
        return []
