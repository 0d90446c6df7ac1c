"""Looks up what published an entry, and what was published because of one (`include/origin.lua`)."""

from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis

from supervisor.core.ids import parse_id
from supervisor.core.origin import Origin
from supervisor.keys import cancelled_key, emits_key, origins_key

#: What is looked through of one stream, in pages.
_SCAN_MAX = 11_000
_PAGE = 1_000
#: What a message has published is not older than it is, but for clocks that differ between the nodes of a cluster.
_SKEW_MS = 60_000
#: Entries that are returned of what a message has published.
EMITTED_MAX = 100


async def origin_of(redis: Redis, stream: str, entry_id: str) -> Origin | None:
    """Return what published the entry, None for a producer or when it is not known. Raises redis-py's errors."""
    found: Any = await redis.xrange(origins_key(stream), entry_id, entry_id)
    return Origin.parse(found[0][1]) if found else None


async def entry_of_later(redis: Redis, stream: str, later_id: str) -> str | None:
    """Return the entry that a message for later has become, if that was lately. Raises redis-py's errors."""
    async for entry_id, fields in _scan(redis, "XREVRANGE", stream, "+", "-"):
        if fields.get(b"later") == later_id.encode(errors="surrogateescape"):
            return entry_id.decode()
    return None


async def cancelled_ms(redis: Redis, stream: str, later_id: str) -> int | None:
    """Return when a message for later was cancelled, if that was lately. Raises redis-py's errors."""
    found: Any = await redis.zscore(cancelled_key(stream), later_id)
    return None if found is None else int(found)


async def emitted(redis: Redis, stream: str, group: str, entry_id: str) -> tuple[tuple[str, str], ...]:
    """Return (stream, id) of what the group's handler has published by `Emit` for the message, as far as it is known.

    Raises redis-py's errors.
    """
    targets: Any = await redis.zrange(emits_key(stream, group), 0, -1)
    found: list[tuple[str, str]] = []
    for target in targets:
        start = f"{max(0, parse_id(entry_id)[0] - _SKEW_MS)}-0"
        name = target.decode(errors="surrogateescape")
        async for own_id, fields in _scan(redis, "XRANGE", name, start, "+"):
            origin = Origin.parse(fields)
            if origin and (origin.stream, origin.group) == (stream, group) and entry_id in origin.ids:
                found.append((name, own_id.decode()))
            if len(found) == EMITTED_MAX:
                return tuple(found)
    return tuple(found)


async def _scan(
    redis: Redis, command: str, stream: str, start: str, end: str
) -> AsyncIterator[tuple[bytes, dict[bytes, bytes]]]:
    """Yield what is known of the stream's entries between these bounds of the command, up to a limit."""
    for _ in range(0, _SCAN_MAX, _PAGE):
        page = await redis.execute_command(command, origins_key(stream), start, end, "COUNT", _PAGE)
        for entry in page:
            yield entry
        if len(page) < _PAGE:
            return
        start = f"({page[-1][0].decode()}"
