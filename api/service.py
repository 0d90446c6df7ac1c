"""What the routes share: settings, Redis, the publisher, and the state of the pool, none older than a second.

It starts and answers without Redis. The state is asked for when somebody wants it, once for all who
want it at the same time, and never waited for beyond a limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from supervisor.broker.connect import client
from supervisor.broker.redis_errors import code_of
from supervisor.control.client import request as ask_arbiter
from supervisor.errors import SupervisorError
from supervisor.publisher import Publisher
from supervisor.settings.paths import PoolPaths, pool_paths, redis_url
from supervisor.status import collect, with_memory

from .problems import Problem

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded
    from supervisor.settings.model import Settings

T = TypeVar("T")
#: How old an answer about the state may be.
FRESH_S = 1.0
#: A probe is answered within this time, and with "no answer" from whoever took longer.
PULSE_LIMIT_S = 0.15
#: The same for the whole state.
STATUS_LIMIT_S = 0.2
#: A script that could write is refused wherever a write is (full, a replica, disk trouble), whatever it does.
_WRITES_NOTHING = "#!lua\nreturn 1"


class Cached(Generic[T]):
    """The latest result of `fetch`, fetched again when it is older than a second."""

    def __init__(self, fetch: Callable[[], Awaitable[T]]) -> None:
        """Fetches nothing yet."""
        self._fetch = fetch
        self._task: asyncio.Task[T] | None = None
        self._value: T | None = None
        self._until_s = float("-inf")

    async def get(self, limit_s: float) -> T | None:
        """A fresh result; None when there is none within `limit_s`. The fetch goes on for the next who asks."""
        if time.monotonic() < self._until_s:
            return self._value
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._update())
        done, _ = await asyncio.wait([self._task], timeout=limit_s)
        return self._task.result() if done else None

    def cancel(self) -> None:
        """End a fetch that is under way."""
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
    #: What the arbiter says; None: no pool runs on this host.
    pool: dict[str, Any] | None = None
    #: Why the arbiter said nothing though its socket is there.
    pool_error: str = ""

    @property
    def workers(self) -> tuple[int, int]:
        """(ready, all)."""
        workers = (self.pool or {}).get("workers", [])
        return sum(worker["state"] == "READY" for worker in workers), len(workers)


class Service:
    """One per process."""

    def __init__(self, loaded: Loaded) -> None:
        """Connects to nothing."""
        self.loaded = loaded
        self.settings: Settings = loaded.settings
        self.paths: PoolPaths = pool_paths(self.settings)
        self.url = redis_url(self.settings)
        self.limit_s = self.settings.api.produce_timeout_ms / 1000
        self.redis: Redis = client(self.url, timeout_s=self.limit_s, connect_timeout_s=self.limit_s)
        self.publisher = Publisher(self.url, timeout_s=self.limit_s)
        self.stopping = asyncio.Event()
        self.started = False
        #: Clients that follow a stream now.
        self.tails = 0
        self.pulse: Cached[Pulse] = Cached(self._feel)
        self.status: Cached[dict[str, Any]] = Cached(lambda: collect(self.settings, loaded.root))

    async def state(self) -> dict[str, Any]:
        """The document of `supervisor status --json`; what can't be had in time is missing from it."""
        found: dict[str, Any] | None
        # Both at once: one after the other would take too long when neither can be had.
        found, pulse = await asyncio.gather(self.status.get(STATUS_LIMIT_S), self.pulse.get(STATUS_LIMIT_S))
        if found is not None:
            return found
        told = dict((pulse and pulse.pool) or {"state": "down", "pid": None, "uptime_s": None, "workers": []})
        told["redis"] = {"url": None, "version": None, "durability": None, "error": "no answer in time"}
        if told["state"] == "healthy":
            told["state"] = "degraded"
        return {**told, "workers": await with_memory(told["workers"]), "groups": []}

    async def close(self) -> None:
        """End what is under way and disconnect."""
        self.stopping.set()
        self.pulse.cancel()
        self.status.cancel()
        await self.publisher.aclose()
        await self.redis.aclose()

    async def _feel(self) -> Pulse:
        trouble, told = await asyncio.gather(self._would_write(), asyncio.to_thread(self._ask))
        return Pulse(trouble, *told)

    async def _would_write(self) -> str:
        """Why Redis would not take a write now; empty: it would."""
        try:
            async with asyncio.timeout(PULSE_LIMIT_S):
                await self.redis.execute_command("EVAL", _WRITES_NOTHING, 0)
        except ResponseError as error:
            # Before Redis 7 the script has no flags and does not compile: it answers, and no more is known.
            return "" if code_of(error) == "ERR" else f"{code_of(error)}: {error}"
        except (RedisError, OSError) as error:
            return str(error) or "no answer in time"
        return ""

    def _ask(self) -> tuple[dict[str, Any] | None, str]:
        if not self.paths.control.exists():
            return None, ""
        try:
            told = ask_arbiter(self.paths, "status", patience_s=PULSE_LIMIT_S)
        except SupervisorError as error:
            return None, str(error)
        del told["redis_url"]  # with its password
        return told, ""


def service_of(request: Request) -> Service:
    """The process's service."""
    found: Service = request.app.state.service
    return found


async def _service(request: Request) -> Service:
    return service_of(request)


async def _publisher(request: Request) -> Publisher:
    return service_of(request).publisher


async def _redis(request: Request) -> Redis:
    return service_of(request).redis


ServiceDep = Annotated[Service, Depends(_service)]
PublisherDep = Annotated[Publisher, Depends(_publisher)]
#: A client whose every answer comes as quickly as a publish's, or fails with what becomes 503.
RedisDep = Annotated[Redis, Depends(_redis)]


def refuse_without_redis(state: dict[str, Any]) -> None:
    """Raise a problem when the state lacks what Redis would have told."""
    error = state["redis"].get("error")
    if error:
        raise Problem("redis-unavailable", error, code="UNREACHABLE")
