"""The keeper: the service that does a pool's housekeeping in Redis.

It renews the pool's lease, reaps consumers whose owner is gone, trims streams that have a retention, publishes what is
due, and counts the backlog if the pool scales with it. It is a child of the arbiter that may be lost at any time: all
its state is in Redis, and its successor goes on from there.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import uvloop
from redis.exceptions import ResponseError

from supervisor.broker import inspect
from supervisor.broker.cancelling import cancel
from supervisor.broker.connect import client
from supervisor.broker.redis_errors import REDIS_FAULTS, is_transient
from supervisor.errors import EXIT_OK
from supervisor.handling.loader import HandlerSpec
from supervisor.keeper.duty import duty
from supervisor.keeper.lease import RENEW_S, drop, renew
from supervisor.keeper.reaper import Reaper
from supervisor.keeper.scheduler import publishing
from supervisor.keeper.trimmer import Trimmer
from supervisor.keys import consumer_name, isolated_key, pool_id, replay_key
from supervisor.log import FaultLog, Limiter, outage_turn, service_logger
from supervisor.settings.model import Settings
from supervisor.settings.paths import redis_url
from supervisor.shared_state import HeaderField, SharedState

#: Interval at which the backlog is counted.
BACKLOG_S = 1.0


def run(settings: Settings, specs: Sequence[HandlerSpec], shared: SharedState, token: str) -> int:
    """Do the housekeeping until SIGTERM or SIGINT; return the exit code."""
    return uvloop.run(_main(settings, specs, shared, token))


async def _main(settings: Settings, specs: Sequence[HandlerSpec], shared: SharedState, token: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    keeper = Keeper(settings, specs, shared, token)
    stopping = asyncio.create_task(stop.wait())
    due = [asyncio.create_task(work) for work in keeper.publishing()]
    parent = os.getppid()
    while not stop.is_set() and os.getppid() == parent:
        await keeper.run_cycle()
        await asyncio.wait([stopping, *due], timeout=keeper.pause_s, return_when=asyncio.FIRST_COMPLETED)
        for task in due:
            if task.done():  # it ends only by a bug: the arbiter starts the next keeper
                task.result()
    await cancel(stopping, *due)
    if stop.is_set():
        await keeper.clear_isolation_markers()
    await keeper.close()
    return EXIT_OK


class Keeper:
    """Does the housekeeping of one pool, cycle by cycle."""

    def __init__(self, settings: Settings, specs: Sequence[HandlerSpec], shared: SharedState, token: str) -> None:
        self._groups = [(spec.stream, spec.group) for spec in specs]
        self._autoscaled = bool(settings.pool.workers_max)
        #: Pause between two cycles.
        self.pause_s = BACKLOG_S if self._autoscaled else RENEW_S
        self._pool = pool_id(settings.pool.host, settings.pool.name)
        self._redis = client(redis_url(settings), connect_timeout_s=settings.redis.connect_timeout_s)
        self._shared = shared
        self._token = token
        self._log = service_logger(settings, "keeper")
        self._faults = FaultLog(self._log, outage_turn(shared))
        foreign_after_s = settings.consumer.claim_foreign_after_s
        self._reaper = Reaper(
            self._redis, self._pool, token, shared, specs, self._faults, foreign_after_s=foreign_after_s
        )
        self._limiter = Limiter()
        #: (stream, group) -> entries that were removed unread, as last logged.
        self._trimmed: dict[tuple[str, str], int] = {}
        self._trimmer = Trimmer(self._redis, settings, token, self._groups, self._faults)
        self._settings = settings

    def publishing(self) -> list[Coroutine[Any, Any, None]]:
        """Return what publishes messages when they are due; it runs beside the cycles, which may take long."""
        return publishing(self._redis, self._settings, redis_url(self._settings), self._groups, self._log)

    async def run_cycle(self) -> None:
        """Do all duties once; a fault of Redis is logged and the next cycle tries again."""
        try:
            if await renew(self._redis, self._pool, self._token, self._faults):
                await self._housekeeping()
            else:
                self._give_up()
        except REDIS_FAULTS:  # what failed has logged it
            self._shared.set(HeaderField.KEEPER_REDIS_OK, 0)
            self._reaper.note_outage()
        else:
            self._shared.set(HeaderField.KEEPER_REDIS_OK, 1)
        self._shared.set(HeaderField.KEEPER_BEAT_NS, time.monotonic_ns())

    async def _housekeeping(self) -> None:
        if self._autoscaled:
            await self._count_backlog()
        await self._reaper.look()
        await self._trimmer.look()
        await self._count_trimmed()

    async def _count_trimmed(self) -> None:
        """Count the entries that somebody removed before a group read them: nothing else reports them."""
        for stream, group in self._groups:
            with duty(self._faults, "count removed entries", stream, group):
                await self._count_trimmed_of(stream, group)

    async def _count_trimmed_of(self, stream: str, group: str) -> None:
        try:
            count = await inspect.trimmed_unread(self._redis, stream, group, keep=True)
        except ResponseError as error:
            if is_transient(error):
                raise
            return  # not a stream, or a server that is full: the workers say so
        before = self._trimmed.setdefault((stream, group), count or 0)
        if count and count > before:
            self._trimmed[stream, group] = count
            if self._limiter.held_back(f"{stream} {group}") is not None:
                self._log.warning("entries removed unread", stream=stream, group=group, entries=count)

    def _give_up(self) -> None:
        """Tell the arbiter that the lease is another pool's: this one was silent for too long."""
        if not self._shared.get(HeaderField.NAME_TAKEN):
            self._log.error("pool name taken", pool=self._pool)
            self._shared.set(HeaderField.NAME_TAKEN, 1)

    async def _count_backlog(self) -> None:
        with duty(self._faults, "count the backlog"):
            groups = await inspect.groups(self._redis, self._groups)
            unread = await inspect.unread_copies(self._redis, self._groups)
            self._shared.set(HeaderField.BACKLOG, unread + sum(group.lag for group in groups))
            self._shared.set(HeaderField.BACKLOG_NS, time.monotonic_ns())

    async def clear_isolation_markers(self) -> None:
        """Remove the workers' isolation markers: the workers were stopped on purpose, so no message is charged."""
        names = [consumer_name(self._pool, slot) for slot in range(self._shared.get(HeaderField.WORKERS))]
        with contextlib.suppress(*REDIS_FAULTS):
            for stream, group in self._groups if names else ():
                for key in (stream, replay_key(stream, group)):
                    await self._redis.hdel(isolated_key(key, group), *names)

    async def close(self) -> None:
        """Give the lease up and disconnect."""
        with contextlib.suppress(*REDIS_FAULTS):  # the lease expires by itself
            await drop(self._redis, self._pool, self._token)
        await self._redis.aclose()
