"""The consumers of one process of a FastAPI app, for `supervisor.fastapi.lifespan`.

They run as tasks of the app's event loop. Each process of the app takes its own name with a lease in
Redis, does the keeper's work for that name, and takes over from processes that are gone.
"""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

from supervisor.broker.cancelling import cancel, wait_at_most
from supervisor.broker.connect import client
from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.core.backoff import backoff_s
from supervisor.core.outcome import Crash
from supervisor.handling.loader import HandlerSpec
from supervisor.keeper.lease import RENEW_S, drop, renew, take_free_number
from supervisor.keeper.reaper import Reaper
from supervisor.keeper.scheduler import publishing
from supervisor.keeper.trimmer import Trimmer
from supervisor.keys import consumer_name
from supervisor.log import FaultLog, logger, worker_logger
from supervisor.settings.model import Settings
from supervisor.shared_state import HeaderField, SharedSlot, SharedState, SlotField
from supervisor.worker.lifespans import WorkerLifespans
from supervisor.worker.runtime import Runtime

#: How often the consumers' figures are written and requests to rescan are looked for.
_REPORT_S = 0.5
_RECONNECT_BASE_S = 0.05
_RECONNECT_MAX_S = 2.0
#: As the arbiter does it with workers.
_RESTART_BASE_S = 0.1
_RESTART_MAX_S = 30.0
_STEADY_S = 60.0
#: How long consumers have to clean up when they are cancelled.
_CLOSE_S = 5.0


class AppConsumers:
    """The consumers of one process of the app, from its start to its end."""

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
        self._running = self._start_task(self._run())

    async def stop(self) -> None:
        """Finish the messages in hand within the drain deadline, then disconnect."""
        self._stopping.set()
        await self._running

    async def _run(self) -> None:
        try:
            while (lease := await self._take_lease()) is not None:
                await self._work(*lease)
                # It returns when another process has the name, or the keeper's part has failed.
                await wait_at_most(_REPORT_S, self._stopping)
        finally:
            with contextlib.suppress(*REDIS_FAULTS):  # TLS waits for the other end, which may be away
                await self._redis.aclose()

    async def _take_lease(self) -> tuple[str, str] | None:
        """Take a name; wait while Redis is unreachable; return its pool and token, or None if the app ends first."""
        failures = 0
        while not self._stopping.is_set():
            try:
                lease = await take_free_number(self._redis, self._settings.pool.host, self._name)
            except REDIS_FAULTS as error:
                failures += 1
                self._faults.redis("can't take an app name", error)
            else:
                self._faults.resolved("can't take an app name")
                return lease
            delay_s = backoff_s(failures, _RECONNECT_BASE_S, _RECONNECT_MAX_S, random.random)
            await wait_at_most(delay_s, self._stopping)
        return None

    async def _work(self, pool: str, token: str) -> None:
        """Run the consumers until the app ends or another process has the name."""
        leaving = asyncio.Event()
        slots = range(self._shared.get(HeaderField.WORKERS))
        consumers = [self._start_task(self._consume(slot, consumer_name(pool, slot), leaving)) for slot in slots]
        others = [self._start_task(self._keep(pool, token)), self._start_task(self._stopping.wait())]
        groups = [(spec.stream, spec.group) for spec in self._specs]
        due = publishing(self._redis, self._settings, self._settings.redis.url, groups, self._log)
        others += [self._start_task(work) for work in due]
        try:
            await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            leaving.set()
            await asyncio.wait(consumers, timeout=self._settings.pool.drain_s)
        finally:
            leaving.set()
            await cancel(*consumers, again_s=_CLOSE_S)  # a second cancellation interrupts their clean-up
            await cancel(*others)
        with contextlib.suppress(*REDIS_FAULTS):  # the lease expires by itself
            await drop(self._redis, pool, token)

    async def _consume(self, slot: int, name: str, leaving: asyncio.Event) -> None:
        """Run one consumer until `leaving` is set; start it again, later each time, when its own code has failed."""
        fields, crash, failures = self._shared.slot(slot), None, 0
        fields.keep_consumers(())  # this process has not crashed
        fields.set(SlotField.ISOLATING, 0)
        while not leaving.is_set():
            began_s, failed = time.monotonic(), False
            fields.reset_for_new_worker()
            faults = FaultLog(worker_logger(self._settings, slot))
            runtime = Runtime(self._settings, self._specs, fields, name, faults, crash=crash)
            try:
                await self._run_until(runtime, fields, leaving)
            except Exception as error:
                self._log.error("app consumer failed", slot=slot, exc_info=error)
                crash, failed = Crash("failed", "", None, ""), True
                failures = 1 if time.monotonic() - began_s > _STEADY_S else failures + 1
            finally:
                await runtime.close(crashed=failed)
            delay_s = backoff_s(failures, _RESTART_BASE_S, _RESTART_MAX_S, random.random) if failed else 0
            await wait_at_most(delay_s, leaving)

    async def _run_until(self, runtime: Runtime, fields: SharedSlot, leaving: asyncio.Event) -> None:
        """Run it in the project's lifespans, drain it when `leaving` is set. Raises what its own code raises."""
        lifespans = WorkerLifespans(self._specs)
        runtime.context.state = await lifespans.enter()
        try:
            await self._work_until(runtime, fields, leaving)
        finally:
            await lifespans.leave()

    async def _work_until(self, runtime: Runtime, fields: SharedSlot, leaving: asyncio.Event) -> None:
        running = asyncio.create_task(runtime.run(partial(_note_ready, fields)))
        reporting, end = self._start_task(self._report(runtime, fields)), asyncio.create_task(leaving.wait())
        try:
            await asyncio.wait([running, end], return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                await runtime.drain()
            await running
        finally:
            tasks = running, reporting, end
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self, pool: str, token: str) -> None:
        """Renew the lease and take over from processes that are gone. Returns when another process has the name."""
        groups = [(spec.stream, spec.group) for spec in self._specs]
        foreign_after_s = self._settings.consumer.claim_foreign_after_s
        reaper = Reaper(
            self._redis, pool, token, self._shared, self._specs, self._faults, foreign_after_s=foreign_after_s
        )
        trimmer = Trimmer(self._redis, self._settings, token, groups, self._faults)
        while True:
            try:
                if not await renew(self._redis, pool, token, self._faults, of_app=True):
                    self._log.error("app name lost to another process", name=pool)
                    return
                if not self._stopping.is_set():
                    await reaper.look()
                    await trimmer.look()
            except REDIS_FAULTS:  # what failed has logged it
                reaper.note_outage()
            await asyncio.sleep(RENEW_S)

    async def _report(self, runtime: Runtime, fields: SharedSlot) -> None:
        """Write its figures, and have it rescan its pending list when the keeper asks for it."""
        rescans = fields.get(SlotField.RESCAN_PENDING)
        while True:
            runtime.report()
            asked = fields.get(SlotField.RESCAN_PENDING)
            if asked != rescans:
                rescans = asked
                runtime.rescan()
            await asyncio.sleep(_REPORT_S)

    def _start_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task whose failure is logged at once, since it may be awaited only when the app ends."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._log_failure)
        return task

    def _log_failure(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("app consumers failed", exc_info=error)


def _note_ready(fields: SharedSlot) -> None:
    fields.set(SlotField.READY_NS, time.monotonic_ns())
