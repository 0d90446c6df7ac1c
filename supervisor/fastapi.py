"""Consumers that live inside a FastAPI app: `FastAPI(lifespan=supervisor.fastapi.lifespan(...))`.

The same handlers as in a pool run as N tasks of the app's own event loop, start with it and stop
cleanly with it: what is in hand is finished and acked before the app is gone. There are no
processes and no arbiter here, so a handler that blocks, blocks the app.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from supervisor.broker.connect import client
from supervisor.core.backoff import backoff_s
from supervisor.errors import SupervisorError, UsageError
from supervisor.handling.load import load_handlers, specs_of
from supervisor.keeper.lease import RENEW_S
from supervisor.keeper.numbered_lease import NumberedLease
from supervisor.keeper.reaper import Reaper
from supervisor.keeper.trimmer import Trimmer
from supervisor.keys import consumer_name
from supervisor.log import FaultLog, logger, worker_logger
from supervisor.settings.load import load
from supervisor.shared_state import SLOTS_MAX, HeaderField, SharedState, SlotField
from supervisor.worker.runtime import Runtime

if TYPE_CHECKING:
    from supervisor.handling.load import HandlerSpec
    from supervisor.settings.model import Settings
    from supervisor.shared_state import SharedSlot

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]
#: How often a consumer's figures are written and requests looked at.
_REPORT_S = 0.5
_RECONNECT_BASE_S = 0.05
_RECONNECT_MAX_S = 2.0


def lifespan(
    *handlers: Callable[..., Any],
    consumers: int = 1,
    config: Path | str | None = None,
    redis_url: str | None = None,
    name: str = "fastapi",
) -> Lifespan:
    """A lifespan that runs `handlers` (or those of config.toml) as `consumers` consumers.

    `config`, `redis_url` and the environment say where Redis is, as for the command line; there is
    no embedded server here. Raises UsageError without a Redis URL, HandlerError and ConfigError for
    what is declared wrongly, all before the app starts.

    Each process of the app works under a name of its own, whatever starts it and however many there
    are (`uvicorn --workers 4`, a rolling deploy): its consumers are `<host>:<name>-<number>:<slot>`
    with the lowest number that no live process of that `name` has. The number is a lease in Redis; it
    is given back when the app ends, and runs out ten seconds after the process was killed. What was
    still pending there is then taken over by the other processes, or by the next that starts.
    """
    if not re.fullmatch(r"[^\s:{}]+", name):
        raise UsageError(f"lifespan: name = {name!r}: it must have no spaces, colons and braces")
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
        app_consumers = AppConsumers(loaded.settings, specs, consumers, name)
        try:
            yield
        finally:
            await app_consumers.stop()

    return run


class AppConsumers:
    """The consumers of one process of the app: under a name of their own, from its start to its end."""

    def __init__(self, settings: Settings, specs: list[HandlerSpec], consumers: int, name: str) -> None:
        self._settings = settings
        self._specs = specs
        self._name = name
        self._shared = SharedState()
        self._shared.set(HeaderField.WORKERS, consumers)
        self._redis = client(settings.redis.url, connect_timeout_s=settings.redis.connect_timeout_s)
        self._log = logger(settings, pid=os.getpid())
        self._faults = FaultLog(self._log)
        self._stopping = asyncio.Event()
        self._life = self._start(self._live())

    async def stop(self) -> None:
        """Finish what is in hand within the drain deadline, then disconnect. Raises what a consumer raised."""
        self._stopping.set()
        await self._life

    async def _live(self) -> None:
        try:
            while (seat := await self._find_seat()) is not None:
                await self._work(seat)
        finally:
            await self._redis.aclose()

    async def _find_seat(self) -> NumberedLease | None:
        """A name; None when the app ends first. Waits while Redis is away."""
        failures = 0
        while not self._stopping.is_set():
            try:
                seat = await NumberedLease.find(self._redis, self._settings.pool.host, self._name)
            except (RedisError, OSError) as error:
                failures += 1
                self._faults.redis("can't take a name", error)
            else:
                self._faults.resolved("can't take a name")
                return seat
            await self._pause(backoff_s(failures, _RECONNECT_BASE_S, _RECONNECT_MAX_S, random.random))
        return None

    async def _work(self, seat: NumberedLease) -> None:
        """Until the app ends, or the name is another's."""
        runtimes: list[Runtime] = []
        tasks: list[asyncio.Task[Any]] = []
        for slot in range(self._shared.get(HeaderField.WORKERS)):
            words = self._shared.slot(slot)
            words.reset_for_new_worker()
            words.clear_started()
            faults = FaultLog(worker_logger(self._settings, slot))
            runtime = Runtime(self._settings, self._specs, words, consumer_name(seat.pool, slot), faults)
            runtimes.append(runtime)
            # At once: the task keeps the context that the runtime has just set.
            tasks.append(self._start(runtime.run(partial(_note_ready, words))))
        reporting, keeping = self._start(self._report(runtimes)), self._start(self._keep(seat))
        stopping = self._start(self._stopping.wait())
        await asyncio.wait([keeping, stopping], return_when=asyncio.FIRST_COMPLETED)
        for runtime in runtimes:
            await runtime.drain()
        await asyncio.wait(tasks, timeout=self._settings.pool.drain_s)
        tasks += [reporting, keeping, stopping]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for runtime in runtimes:
            await runtime.close()
        with contextlib.suppress(RedisError, OSError):  # it runs out by itself
            await seat.leave()
        failed = [result for result in results if isinstance(result, Exception)]
        if failed:
            raise SupervisorError(f"a consumer ended by itself: {failed[0]!r}") from failed[0]

    async def _keep(self, seat: NumberedLease) -> None:
        """Renew the name, and take over from processes that are gone; ends when the name is another's."""
        groups = [(spec.stream, spec.group) for spec in self._specs]
        reaper = Reaper(self._redis, seat.pool, seat.token, self._shared, groups, self._log)
        reaper.foreign_after_s = self._settings.consumer.claim_foreign_after_s
        trimmer = Trimmer(self._redis, self._settings, seat.token, groups, self._log)
        while True:
            try:
                if not await seat.renew():
                    self._log.error("another process has taken this one's name: it takes another", name=seat.pool)
                    return
                if not self._stopping.is_set():
                    await reaper.look()
                    await trimmer.look()
            except (RedisError, OSError) as error:
                reaper.lost_sight()
                self._faults.redis("can't renew the name", error)
                await trimmer.make_room(error)
            else:
                self._faults.resolved("can't renew the name")
            await asyncio.sleep(RENEW_S)

    async def _report(self, runtimes: list[Runtime]) -> None:
        sweeps = [0] * len(runtimes)
        while True:
            for slot, runtime in enumerate(runtimes):
                runtime.report()
                asked = self._shared.slot(slot).get(SlotField.RESCAN_PENDING)
                if asked != sweeps[slot]:
                    sweeps[slot] = asked
                    runtime.sweep()
            await asyncio.sleep(_REPORT_S)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that never ends badly without a word: who waits for it may do so at the end of the app."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._tell)
        return task

    def _tell(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("consumers of this app have ended by themselves", exc_info=error)

    async def _pause(self, limit_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), limit_s)


def _note_ready(words: SharedSlot) -> None:
    words.set(SlotField.READY_NS, time.monotonic_ns())
