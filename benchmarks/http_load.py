"""A load generator for one route: N keep-alive connections, each sends its next request when it has its answer.

It speaks just enough HTTP/1.1 for that (answers with a Content-Length), since a general client would
be slower than the server it measures.
"""

import asyncio
import re
import time
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

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies_ms) / self.seconds

    def percentile_ms(self, share: float) -> float:
        """The latency that this share of the answers kept to."""
        return sorted(self.latencies_ms)[min(len(self.latencies_ms) - 1, int(share * len(self.latencies_ms)))]


async def post(url: str, body: bytes, *, connections: int, seconds: float, warm_up_s: float = 1.0) -> Load:
    """POST `body` to `url` for `seconds` after a warm-up. Raises ConnectionError when the server goes away."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    load = Load()
    begin = time.perf_counter() + warm_up_s
    end = begin + seconds
    async with asyncio.TaskGroup() as tasks:
        for _ in range(connections):
            tasks.create_task(_one(parts.hostname or "", parts.port or 80, request, load, begin, end))
    load.seconds = seconds
    return load


async def _one(host: str, port: int, request: bytes, load: Load, begin: float, end: float) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while (sent := time.perf_counter()) < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = LENGTH.search(head)
            if length and int(length[1]):
                await reader.readexactly(int(length[1]))
            if sent >= begin:
                load.latencies_ms.append((time.perf_counter() - sent) * 1000)
                status = int(head[9:12])
                load.statuses[status] = load.statuses.get(status, 0) + 1
    except asyncio.IncompleteReadError as error:
        raise ConnectionError(f"{host}:{port} closed the connection") from error
    finally:
        writer.close()
