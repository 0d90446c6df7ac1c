"""Consumers that live inside a FastAPI app: `FastAPI(lifespan=supervisor.fastapi.lifespan(...))`.

The same handlers as in a pool run as N tasks of the app's own event loop, start with it and stop
cleanly with it: what is in hand is finished and acked before the app is gone. There are no
processes and no arbiter here, so a handler that blocks, blocks the app.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.board import SLOTS_MAX, Board
from supervisor.errors import SupervisorError, UsageError
from supervisor.handling.load import load_handlers, specs_of
from supervisor.log import Complaints, worker_logger
from supervisor.names import consumer_name, pool_id
from supervisor.settings.load import load
from supervisor.worker.runtime import Runtime

if TYPE_CHECKING:
    from supervisor.handling.load import HandlerSpec
    from supervisor.settings.model import Settings

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]
#: How often a consumer's figures are written and requests looked at.
_REPORT_S = 0.5


def lifespan(
    *handlers: Callable[..., Any],
    consumers: int = 1,
    config: Path | str | None = None,
    redis_url: str | None = None,
    name: str = "fastapi",
) -> Lifespan:
    """A lifespan that runs `handlers` (or those of config.toml) as `consumers` consumers.

    `config`, `redis_url` and the environment say where Redis is, as for the command line; there is
    no embedded server here. `name` tells this app's consumers apart from a pool's on the same host:
    two live processes must not share it. Raises UsageError without a Redis URL, HandlerError and
    ConfigError for what is declared wrongly, all before the app starts.
    """
    if not 1 <= consumers <= SLOTS_MAX:
        raise UsageError(f"lifespan: consumers = {consumers}: allowed are 1 to {SLOTS_MAX}")

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[None]:
        flags: dict[str, Any] = {"redis.url": redis_url} if redis_url else {}
        loaded = load(Path(config) if config else None, flags)
        if not loaded.settings.redis.url:
            raise UsageError("lifespan: no Redis URL: give redis_url=..., REDIS_URL or [redis] url in config.toml")
        root = loaded.path.parent if loaded.path else Path.cwd()
        specs = specs_of(loaded.settings, handlers) if handlers else load_handlers(loaded.settings, root)
        crew = _Crew(loaded.settings, specs, consumers, name)
        try:
            yield
        finally:
            await crew.stop()

    return run


class _Crew:
    """The runtimes of one app."""

    def __init__(self, settings: Settings, specs: list[HandlerSpec], consumers: int, name: str) -> None:
        pool = pool_id(settings.pool.host, name)
        board = Board()
        self._drain_s = settings.pool.drain_s
        self._runtimes = [
            Runtime(
                settings, specs, board.slot(slot), consumer_name(pool, slot), Complaints(worker_logger(settings, slot))
            )
            for slot in range(consumers)
        ]
        self._tasks = [asyncio.create_task(runtime.run(lambda: None)) for runtime in self._runtimes]
        self._reporting = asyncio.create_task(self._report())

    async def stop(self) -> None:
        """Finish what is in hand within the drain deadline, then disconnect. Raises what a consumer raised."""
        for runtime in self._runtimes:
            await runtime.drain()
        await asyncio.wait(self._tasks, timeout=self._drain_s)
        self._reporting.cancel()
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, self._reporting, return_exceptions=True)
        for runtime in self._runtimes:
            await runtime.close()
        failed = [result for result in results if isinstance(result, Exception)]
        if failed:
            raise SupervisorError(f"a consumer ended by itself: {failed[0]!r}") from failed[0]

    async def _report(self) -> None:
        while True:
            for runtime in self._runtimes:
                runtime.report()
            await asyncio.sleep(_REPORT_S)
