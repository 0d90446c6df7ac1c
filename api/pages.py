"""Reads pages of a stream, each limited in bytes.

Redis counts entries and not bytes, so the first read takes one entry, and the sizes of those that came say how many
the next one takes. A page has at least one entry, however large.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

#: Encoding a page of this size takes about 10 ms.
PAGE_BYTES = 2 * 1024 * 1024
_GROWTH = 16

Row = tuple[bytes, Mapping[bytes, bytes]]


class Stride:
    """How many entries the next read may take."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.count = 1

    def adapt(self, rows: Sequence[Row], left_bytes: int = PAGE_BYTES) -> None:
        """Note what the last read returned; the next one may take about `left_bytes`."""
        fitting = left_bytes * len(rows) // max(1, sum(map(weight, rows)))
        self.count = max(1, min(self._most, fitting, self.count * _GROWTH))


def weight(row: Row) -> int:
    """Return about the size of an entry."""
    return sum(len(name) + len(value) for name, value in row[1].items())


async def read_page(
    redis: Redis, stream: str, start: str, end: str, count: int, *, reverse: bool = False
) -> tuple[list[Row], bool]:
    """Return at most `count` entries between the bounds, and whether there are more."""
    rows: list[Row] = []
    left_bytes, stride = PAGE_BYTES, Stride(count + 1)
    while True:
        wanted = min(stride.count, count + 1 - len(rows))
        found: Any = await (
            redis.xrevrange(stream, max=end, min=start, count=wanted)
            if reverse
            else redis.xrange(stream, min=start, max=end, count=wanted)
        )
        for row in found:
            if rows and (len(rows) == count or left_bytes < weight(row)):
                return rows, True
            rows.append(row)
            left_bytes -= weight(row)
        if len(found) < wanted:
            return rows, False
        stride.adapt(found, left_bytes)
        after = f"({rows[-1][0].decode()}"
        start, end = (start, after) if reverse else (after, end)
