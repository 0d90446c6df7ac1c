"""What the routes share: settings, Redis, the publisher, and the state of the pool, about a second old.

The service starts and answers without Redis. Its routes answer with snapshots of the state (`snapshots.py`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from supervisor.broker.cancelling import cancel
from supervisor.broker.connect import client
from supervisor.broker.redis_errors import REDIS_FAULTS, code_of
from supervisor.control.client import has_socket
from supervisor.control.client import request as ask_arbiter
from supervisor.errors import SupervisorError
from supervisor.publisher import Publisher
from supervisor.settings.load import Loaded
from supervisor.settings.model import Settings
from supervisor.settings.paths import PoolPaths, pool_paths, redis_url
from supervisor.status import RedisStatus, document, pairs_of, read_redis_status, with_memory, without_pool

from .problems import Problem
from .publish_figures import CountingPublisher, Produced
from .snapshots import NO_ANSWER, LoopWatch, PartHealth, Snapshot, is_pressed, judge
from .validation import HandlerModels

#: How often each part is examined while requests ask for it. The kernel walks all pages of a worker for its memory.
PULSE_EVERY_S = 0.5
GROUPS_EVERY_S = 0.5
MEMORY_EVERY_S = 10.0
FIGURES_EVERY_S = 2.0
#: Redis or an arbiter that takes longer counts as silent, unless the machine is too busy to tell.
PULSE_LIMIT_S = 0.75
SNAPSHOT_LIMIT_S = 5.0
TAIL_STARTS_MAX = 32
#: Large reads at once; the others wait. redis-py refuses more than 100 connections.
READS_MAX = 32
READ_WAIT_S = 5.0
#: A request waits at most this long while nothing is known yet.
FIRST_LIMIT_S = 0.2
#: A probe and a scrape wait less: they answer within 100 ms.
PROBE_LIMIT_S = 0.07
NO_MEMORY: dict[str, Any] = {"rss_bytes": None, "pss_bytes": None}
T = TypeVar("T")
#: Redis refuses a script that may write wherever it refuses a write (out of memory, read-only, a failing disk).
_WRITES_NOTHING = "#!lua\nreturn 1"


@dataclass(frozen=True, slots=True)
class Pulse:
    """Whether the service can do its work."""

    #: Whether Redis takes writes.
    redis: PartHealth
    #: Whether the arbiter answers, where its socket exists.
    arbiter: PartHealth
    #: The answer of the arbiter; None: no pool runs on this host, or it does not answer.
    pool: dict[str, Any] | None = None

    @property
    def workers(self) -> tuple[int, int]:
        """The number of ready workers, and of all."""
        workers = (self.pool or {}).get("workers", [])
        return sum(worker["state"] == "READY" for worker in workers), len(workers)


class Service:
    """The resources of one process of the HTTP service."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.produced = Produced()
        self.settings: Settings = loaded.settings
        self.paths: PoolPaths = pool_paths(self.settings)
        self.url = redis_url(self.settings)
        self.limit_s = self.settings.api.produce_timeout_ms / 1000
        self.redis: Redis = client(self.url, timeout_s=self.limit_s, connect_timeout_s=self.limit_s)
        #: For the snapshots, which may wait longer than a request.
        self._patient: Redis = client(self.url, timeout_s=SNAPSHOT_LIMIT_S, connect_timeout_s=SNAPSHOT_LIMIT_S)
        #: For large reads. They must not take the connections of the snapshots, which say whether Redis works.
        self._reading: Redis = client(self.url, timeout_s=SNAPSHOT_LIMIT_S, connect_timeout_s=SNAPSHOT_LIMIT_S)
        self._reads = asyncio.Semaphore(READS_MAX)
        self.publisher: Publisher = CountingPublisher(self.url, self.produced, timeout_s=self.limit_s)
        self.models = HandlerModels(loaded)
        #: For publishes that wait for replicas or the disk, which must not hold up the others; see `confirming`.
        self._confirming: Publisher | None = None
        self.stopping = asyncio.Event()
        self.started = False
        #: The number of clients that follow a stream now.
        self.tails = 0
        #: Limits how many tails ask Redis at once where to begin: the client has at most 100 connections.
        self.tail_starts = asyncio.Semaphore(TAIL_STARTS_MAX)
        self.pulse: Snapshot[Pulse] = Snapshot(self._measure_pulse, every_s=PULSE_EVERY_S)
        self.redis_status: Snapshot[RedisStatus] = Snapshot(self._read_redis_status, every_s=GROUPS_EVERY_S)
        self._memory: Snapshot[dict[int, dict[str, Any]]] = Snapshot(self._measure_memory, every_s=MEMORY_EVERY_S)
        self._figures: Snapshot[dict[str, Any]] = Snapshot(self._ask_for_figures, every_s=FIGURES_EVERY_S)

    def start(self) -> None:
        """Begin to look at the pool and Redis, so that the first request finds something."""
        for snapshot in self._snapshots:
            snapshot.start()

    @property
    def _snapshots(self) -> tuple[Snapshot[Any], ...]:
        return self.pulse, self.redis_status, self._memory, self._figures

    async def figures(self) -> dict[str, Any]:
        """Return what the workers of this host's pool have counted; empty where that is not known."""
        return await self._figures.get(PROBE_LIMIT_S) or {}

    async def state(self, limit_s: float = FIRST_LIMIT_S) -> dict[str, Any]:
        """Return the document of `supervisor status --json` as last known, without the parts that are not known.

        Waits at most `limit_s` for a part of which nothing is known yet.
        """
        pulse, redis_status, memory = await asyncio.gather(
            self.pulse.get(limit_s), self.redis_status.get(limit_s), self._memory.get(limit_s)
        )
        if pulse is None:
            pool = without_pool(None, "starting")  # nothing was found out yet
        else:
            pool = pulse.pool if pulse.pool is not None else without_pool(pulse.arbiter.error or None)
        redis_status = redis_status or RedisStatus({"url": None, "version": None, "durability": None})
        # A Redis that is full or read-only still shows everything; slowness of our own says nothing of it.
        if pulse is not None and pulse.redis.error and not (pulse.redis.refuses or pulse.redis.unknown):
            redis_status = RedisStatus({**redis_status.server, "error": pulse.redis.error})
        memory = memory or {}
        workers = [{**worker, **memory.get(worker["pid"], NO_MEMORY)} for worker in pool.get("workers", [])]
        return document(pool, redis_status, workers)

    @property
    def confirming(self) -> Publisher:
        """The publisher for publishes that wait for a confirmation."""
        if self._confirming is None:
            limit_s = self.limit_s + self.settings.api.wait_timeout_ms / 1000
            self._confirming = CountingPublisher(
                self.url, self.produced, timeout_s=limit_s, connect_timeout_s=self.limit_s
            )
        return self._confirming

    async def read(self, read: Callable[[Redis], Awaitable[T]]) -> T:
        """Return the result of a read that may be of many megabytes. It may take seconds while Redis answers others.

        Raises redis-py's errors, TimeoutError when Redis is silent, and Problem when too many others read.
        """

        async def read_in_turn() -> T:
            try:
                async with asyncio.timeout(READ_WAIT_S):
                    await self._reads.acquire()
            except TimeoutError:
                raise Problem("busy", f"{READS_MAX} reads of history are under way") from None
            try:
                return await read(self._reading)
            finally:
                self._reads.release()

        reading = asyncio.create_task(read_in_turn())
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait([reading], timeout=self.limit_s / 2)
            if not reading.done():
                async with asyncio.timeout(self.limit_s / 2):
                    await self.redis.ping()
            return await reading
        finally:
            await cancel(reading)

    async def close(self) -> None:
        """Cancel what is running and disconnect."""
        self.stopping.set()
        # Before the clients are closed: a connection that is being made would be left open.
        await asyncio.gather(*(snapshot.close() for snapshot in self._snapshots))
        await self.publisher.aclose()
        if self._confirming is not None:
            await self._confirming.aclose()
        await self.redis.aclose()
        await self._patient.aclose()
        await self._reading.aclose()

    async def _measure_pulse(self, before: Pulse | None) -> Pulse:
        with LoopWatch() as watch:
            (redis, redis_late), (pool, arbiter_error, arbiter_late) = await asyncio.gather(
                self._would_write(), asyncio.to_thread(self._ask)
            )
        now_s = time.monotonic()
        pressed = (redis_late or arbiter_late) and is_pressed()
        redis = judge(
            before.redis if before else None,
            redis,
            timed_out=redis_late,
            starved=watch.starved,
            pressed=pressed,
        )
        arbiter = judge(
            before.arbiter if before else None,
            PartHealth(arbiter_error, now_s),
            timed_out=arbiter_late,
            starved=watch.starved,
            pressed=pressed,
        )
        return Pulse(redis, arbiter, before.pool if arbiter.busy and before is not None else pool)

    async def _would_write(self) -> tuple[PartHealth, bool]:
        """Return why a write would fail now (empty: it would not), and whether Redis did not answer in time."""
        error, late, refuses = "", False, False
        try:
            async with asyncio.timeout(PULSE_LIMIT_S):
                try:
                    await self._patient.execute_command("EVAL", _WRITES_NOTHING, 0)
                except RedisConnectionError:  # the loss of a connection says nothing of the next one
                    await self._patient.execute_command("EVAL", _WRITES_NOTHING, 0)
        except ResponseError as refusal:
            # Before Redis 7 a script has no flags and does not compile: Redis answers, and that is all we know.
            refuses = code_of(refusal) != "ERR"
            error = f"{code_of(refusal)}: {refusal}" if refuses else ""
        except (TimeoutError, RedisTimeoutError):
            error, late = NO_ANSWER, True
        except REDIS_FAULTS as fault:
            error = str(fault) or NO_ANSWER
        return PartHealth(error, time.monotonic(), refuses), late

    def _ask(self) -> tuple[dict[str, Any] | None, str, bool]:
        """Return the arbiter's answer, or why there is none and whether it is only late."""
        if not has_socket(self.paths):
            return None, "", False
        try:
            answer = ask_arbiter(self.paths, "status", patience_s=PULSE_LIMIT_S)
        except SupervisorError as error:
            return None, str(error), isinstance(error.__context__, TimeoutError)
        del answer["redis_url"]  # with its password
        return answer, "", False

    async def _read_redis_status(self, before: RedisStatus | None) -> RedisStatus:
        pulse = await self.pulse.get(FIRST_LIMIT_S)
        answer = (pulse and pulse.pool) or {}
        # An arbiter that does not answer now (it loads new code) has written down its groups: this process imports
        # handlers only where no pool ever ran.
        pairs = pairs_of(answer, self.settings, None) or pairs_of(answer, self.settings, self.loaded.root)
        self.produced.handled.update(stream for stream, _ in pairs)
        status = await read_redis_status(self._patient, self.url, pairs, self.settings)
        # The pulse says whether Redis can be used; while Redis is silent, the last figures stay.
        return before if "error" in status.server and before is not None else status

    async def _ask_for_figures(self, before: dict[str, Any] | None) -> dict[str, Any]:
        if not has_socket(self.paths):
            return {}
        try:
            return await asyncio.to_thread(ask_arbiter, self.paths, "figures", patience_s=SNAPSHOT_LIMIT_S)
        except SupervisorError:  # the pulse says whether it answers
            return before or {}

    async def _measure_memory(self, _: dict[int, dict[str, Any]] | None) -> dict[int, dict[str, Any]]:
        pulse = await self.pulse.get(FIRST_LIMIT_S)
        workers = ((pulse and pulse.pool) or {}).get("workers", [])
        return {w["pid"]: {key: w[key] for key in NO_MEMORY} for w in await with_memory(workers)}


async def get_service(request: Request) -> Service:
    """Return the service of this process."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


def refuse_without_redis(state: dict[str, Any]) -> None:
    """Raise Problem when the state was made without an answer of Redis."""
    error = state["redis"].get("error")
    if error:
        raise Problem("redis-unavailable", error, code="UNREACHABLE")
    if state["redis"]["version"] is None:
        raise Problem("busy", "nothing is known of Redis yet")
