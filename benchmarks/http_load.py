"""Load generators for one route over N keep-alive connections: as fast as it answers, and at a fixed rate.

It speaks just enough HTTP/1.1 for that (answers with a Content-Length), since a general client would
be slower than the server it measures.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass
class Load:
    """What came of it."""

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    #: Status code -> how often.
    statuses: dict[int, int] = field(default_factory=dict)

    def add(self, since: float, status: int) -> None:
        """Count an answer that has just come; `since` by `time.perf_counter`."""
        self.latencies_ms.append((time.perf_counter() - since) * 1000)
        self.statuses[status] = self.statuses.get(status, 0) + 1

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies_ms) / self.seconds

    def percentile_ms(self, share: float) -> float:
        """The latency that this share of the answers kept to."""
        return sorted(self.latencies_ms)[min(len(self.latencies_ms) - 1, int(share * len(self.latencies_ms)))]


async def post(url: str, body: bytes, *, connections: int, seconds: float, warm_up_s: float = 1.0) -> Load:
    """POST `body` to `url` for `seconds` after a warm-up. Raises ConnectionError when the server goes away."""
    load = Load(seconds)
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds

    async def repeat(client: _Client) -> None:
        while (sent := time.perf_counter()) < end:
            status = await client.post()
            if sent >= begin:
                load.add(sent, status)

    await _each(url, body, connections, lambda client, _: repeat(client))
    return load


async def post_at(url: str, body: bytes, *, connections: int, seconds: float, rate: float) -> Load:
    """POST `body` to `url` at fixed times, `rate` a second; a latency counts from when its request was due.

    Raises ConnectionError when the server goes away.
    """
    load = Load(seconds)
    begin = time.perf_counter() + 0.1
    every_s = connections / rate

    async def repeat(client: _Client, number: int) -> None:
        due = begin + number / rate
        while due < begin + seconds:
            await asyncio.sleep(due - time.perf_counter())
            load.add(due, await client.post())
            due += every_s

    await _each(url, body, connections, repeat)
    return load


class _Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        self._reader, self._writer, self._request = reader, writer, request

    async def post(self) -> int:
        """Send the request and return the status of the answer."""
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(head)
        if length and int(length[1]):
            await self._reader.readexactly(int(length[1]))
        return int(head[9:12])


async def _each(url: str, body: bytes, connections: int, run: Callable[[_Client, int], Awaitable[None]]) -> None:
    """Run the function with each of the connections and its number."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(parts.hostname or "", parts.port or 80)
        try:
            await run(_Client(reader, writer, head.encode() + body), number)
        except asyncio.IncompleteReadError as error:
            raise ConnectionError(f"{parts.netloc} closed the connection") from error
        finally:
            writer.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(connections):
            tasks.create_task(one(number))
