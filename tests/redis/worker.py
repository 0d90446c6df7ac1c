"""A worker's runtime in the process of the test; what it reports is kept."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import structlog
from pydantic import BaseModel

from supervisor.handling.loader import specs_of
from supervisor.log import FaultLog
from supervisor.settings.model import Settings
from supervisor.shared_state import SharedState
from supervisor.worker.runtime import Runtime

STREAM, GROUP = "events", "workers"


class Event(BaseModel):
    number: int


class Fault(NamedTuple):
    """A fault as it was reported."""

    event: str
    error: BaseException
    fields: dict[str, Any]


class Faults(FaultLog):
    """Keeps the faults that are reported to it."""

    def __init__(self, kept: list[Fault]) -> None:
        super().__init__(structlog.get_logger())
        self._kept = kept

    def __call__(self, event: str, error: BaseException, **fields: Any) -> None:
        self._kept.append(Fault(event, error, fields))

    def redis(self, event: str, error: BaseException, **fields: object) -> None:
        self._kept.append(Fault(event, error, fields))


class Worker:
    """A runtime in this process, with the faults it complained of."""

    def __init__(
        self,
        url: str,
        functions: list[Callable[..., Any]],
        shared: SharedState,
        *,
        name: str = "host:0",
        **sections: Any,
    ) -> None:
        settings = Settings(redis={"url": url}, **sections)
        self.faults: list[Fault] = []
        self.shared = shared.slot(0)
        self.ready = asyncio.Event()
        specs = specs_of(settings, functions)
        self.runtime = Runtime(settings, specs, self.shared, name, Faults(self.faults))
        self.task = asyncio.create_task(self.runtime.run(self.ready.set))

    async def stop(self, successor: str | None = None) -> None:
        await self.runtime.drain()
        await asyncio.wait_for(self.task, 30)
        await self.runtime.close(successor)

    async def vanish(self) -> None:
        """End as a killed process does: nothing is acked any more."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.runtime.close()


@asynccontextmanager
async def working(url: str, *functions: Callable[..., Any], **sections: Any) -> AsyncIterator[Worker]:
    worker = Worker(url, list(functions), SharedState(), **sections)
    try:
        yield worker
    finally:
        await worker.stop()


async def pending(redis: Any) -> int:
    return int((await redis.xpending(STREAM, GROUP))["pending"])
