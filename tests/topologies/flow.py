"""A steady flow of messages while something happens to Redis, and a count of what became of them."""

import asyncio
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from supervisor.errors import PublishError, PublishUnknownError
from supervisor.publisher import Publisher

PAUSE_S = 0.005


@dataclass
class Flow:
    """What became of what was published, by the field `n`."""

    stream: str
    #: n -> when its publish was answered, by `time.monotonic`.
    stored: dict[str, float] = field(default_factory=dict)
    #: Sent without an answer: stored or not.
    unknown: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def gap_s(self) -> float:
        """The longest time in which nothing was stored."""
        times = sorted(self.stored.values())
        return max(after - before for before, after in itertools.pairwise(times))

    def stored_after(self, at_s: float) -> int:
        """How many were stored later than that."""
        return sum(when > at_s for when in self.stored.values())


@contextmanager
def flowing(url: str, stream: str, name: str, *, timeout_s: float = 1.0) -> Iterator[Flow]:
    """Publish one message after the other to `stream`, from another thread, until the block is left."""
    flow = Flow(stream)
    stop = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_publish(url, flow, name, stop, timeout_s)))
    thread.start()
    try:
        yield flow
    finally:
        stop.set()
        thread.join()


async def _publish(url: str, flow: Flow, name: str, stop: threading.Event, timeout_s: float) -> None:
    async with Publisher(url, timeout_s=timeout_s) as publisher:
        number = 0
        while not stop.is_set():
            n = f"{name}-{number}"
            number += 1
            try:
                await publisher.publish(flow.stream, {"n": n})
            except PublishUnknownError:
                flow.unknown.append(n)
            except PublishError as error:
                flow.refused[n] = f"{error.code}: {error}"
            else:
                flow.stored[n] = time.monotonic()
            await asyncio.sleep(PAUSE_S)
