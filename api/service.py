"""What the routes share: settings, Redis, the publisher, and the state of the pool, at most a second old.

The service starts and answers without Redis. It fetches the state on request, once for all requests that wait
for it, and waits only up to a limit.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from supervisor.broker.connect import client
from supervisor.broker.redis_errors import REDIS_FAULTS, code_of
from supervisor.control.client import request as ask_arbiter
from supervisor.errors import SupervisorError
from supervisor.publisher import Publisher
from supervisor.settings.load import Loaded
from supervisor.settings.model import Settings
from supervisor.settings.paths import PoolPaths, pool_paths, redis_url
from supervisor.status import collect, with_memory

from .problems import Problem

T = TypeVar("T")
#: The greatest age of a state that is answered with.
FRESH_S = 1.0
#: A probe is answered within this time; a part that takes longer counts as "no answer".
PULSE_LIMIT_S = 0.15
#: The time limit for the whole state.
STATUS_LIMIT_S = 0.2
#: Redis refuses a script that may write wherever it refuses a write (out of memory, read-only, a failing disk).
_WRITES_NOTHING = "#!lua\nreturn 1"


class Cached(Generic[T]):
    """Keeps the latest result of `fetch`, and fetches again when it is older than a second."""

    def __init__(self, fetch: Callable[[], Awaitable[T]]) -> None:
        self._fetch = fetch
        self._task: asyncio.Task[T] | None = None
        self._value: T | None = None
        self._until_s = float("-inf")

    async def get(self, limit_s: float) -> T | None:
        """Return a fresh result; None when `limit_s` is over, and then the fetch goes on for the next call."""
        if time.monotonic() < self._until_s:
            return self._value
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._update())
        done, _ = await asyncio.wait([self._task], timeout=limit_s)
        return self._task.result() if done else None

    def cancel(self) -> None:
        """Cancel a running fetch."""
        if self._task is not None:
            self._task.cancel()

    async def _update(self) -> T:
        value = await self._fetch()
        self._value, self._until_s = value, time.monotonic() + FRESH_S
        return value


@dataclass(frozen=True, slots=True)
class Pulse:
    """Whether the service can do its work."""

    #: Why Redis can't be used; empty: it can.
    redis_error: str
    #: The answer of the arbiter; None: no pool runs on this host.
    pool: dict[str, Any] | None = None
    #: Why the arbiter did not answer though its socket exists.
    pool_error: str = ""

    @property
    def workers(self) -> tuple[int, int]:
        """The number of ready workers, and of all."""
        workers = (self.pool or {}).get("workers", [])
        return sum(worker["state"] == "READY" for worker in workers), len(workers)


class Service:
    """The resources of one process of the HTTP service."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.settings: Settings = loaded.settings
        self.paths: PoolPaths = pool_paths(self.settings)
        self.url = redis_url(self.settings)
        self.limit_s = self.settings.api.produce_timeout_ms / 1000
        self.redis: Redis = client(self.url, timeout_s=self.limit_s, connect_timeout_s=self.limit_s)
        self.publisher = Publisher(self.url, timeout_s=self.limit_s)
        self.stopping = asyncio.Event()
        self.started = False
        #: The number of clients that follow a stream now.
        self.tails = 0
        self.pulse: Cached[Pulse] = Cached(self._measure_pulse)
        self.status: Cached[dict[str, Any]] = Cached(lambda: collect(self.settings, loaded.root))

    async def state(self) -> dict[str, Any]:
        """Return the document of `supervisor status --json`, without the parts that did not answer in time."""
        found: dict[str, Any] | None
        # Both at once: one after the other would take too long when neither answers.
        found, pulse = await asyncio.gather(self.status.get(STATUS_LIMIT_S), self.pulse.get(STATUS_LIMIT_S))
        if found is not None:
            return found
        answer = dict((pulse and pulse.pool) or {"state": "down", "pid": None, "uptime_s": None, "workers": []})
        answer["redis"] = {"url": None, "version": None, "durability": None, "error": "no answer in time"}
        if answer["state"] == "healthy":
            answer["state"] = "degraded"
        return {**answer, "workers": await with_memory(answer["workers"]), "groups": []}

    async def close(self) -> None:
        """Cancel what is running and disconnect."""
        self.stopping.set()
        self.pulse.cancel()
        self.status.cancel()
        await self.publisher.aclose()
        await self.redis.aclose()

    async def _measure_pulse(self) -> Pulse:
        redis_error, pool = await asyncio.gather(self._would_write(), asyncio.to_thread(self._ask))
        return Pulse(redis_error, *pool)

    async def _would_write(self) -> str:
        """Return why Redis would refuse a write now; empty: it would not."""
        try:
            async with asyncio.timeout(PULSE_LIMIT_S):
                await self.redis.execute_command("EVAL", _WRITES_NOTHING, 0)
        except ResponseError as error:
            # Before Redis 7 a script has no flags and does not compile: Redis answers, and that is all we know.
            return "" if code_of(error) == "ERR" else f"{code_of(error)}: {error}"
        except REDIS_FAULTS as error:
            return str(error) or "no answer in time"
        return ""

    def _ask(self) -> tuple[dict[str, Any] | None, str]:
        if not self.paths.control.exists():
            return None, ""
        try:
            answer = ask_arbiter(self.paths, "status", patience_s=PULSE_LIMIT_S)
        except SupervisorError as error:
            return None, str(error)
        del answer["redis_url"]  # with its password
        return answer, ""


async def get_service(request: Request) -> Service:
    """Return the service of this process."""
    found: Service = request.app.state.service
    return found


ServiceDep = Annotated[Service, Depends(get_service)]


def refuse_without_redis(state: dict[str, Any]) -> None:
    """Raise Problem when the state was made without an answer of Redis."""
    error = state["redis"].get("error")
    if error:
        raise Problem("redis-unavailable", error, code="UNREACHABLE")
