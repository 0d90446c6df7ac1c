"""Reads pages of a stream, each limited in bytes. A page has at least one entry, however large."""

from collections.abc import Mapping

from redis.asyncio import Redis

from supervisor.broker.scripts import READ_PAGE

#: Encoding a page of this size takes about 10 ms.
PAGE_BYTES = 2 * 1024 * 1024

Row = tuple[bytes, Mapping[bytes, bytes]]


async def read_page(
    redis: Redis, stream: str, start: str, end: str, count: int, *, reverse: bool = False
) -> tuple[list[Row], bool]:
    """Return at most `count` entries between the bounds, and whether there are more."""
    first, last = (end, start) if reverse else (start, end)
    more, entries = await redis.eval(READ_PAGE.text, 1, stream, first, last, count, PAGE_BYTES, int(reverse))
    return [(entry, dict(zip(flat[::2], flat[1::2], strict=True))) for entry, flat in entries], bool(more)
