"""The benchmark on a user's own Redis: what one pool drains beside a redis-py loop, and how soon an idle one starts.

1. It touches its own keys only: a stream with a random name, what the pool keeps beside it, the pool's lease. All of
   them are removed at the end, however it ends. If this process is killed, the next one removes them (`own_keys.py`);
   the stream would also expire by itself.
2. The backlog is written once. At each turn a group is set back to the beginning of the stream, and one more entry
   wakes those that wait: so the pool's start is in no figure.
3. Pool and loop take turns, so that what else the server does hits both.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from supervisor.bench.own_keys import LATENCY_GROUP, LOOP_GROUP, OwnKeys, own_keys
from supervisor.bench.project import GROUPS, bench_pool
from supervisor.bench.redis_py_loop import URL_VARIABLE
from supervisor.bench.window import Look, Window
from supervisor.broker.connect import describe
from supervisor.errors import SupervisorError
from supervisor.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from supervisor.bench.project import BenchPool

TITLES = {"message": "Message", "dict": "dict[str, str]", "model": "pydantic model"}
FIELDS: dict[str, str] = {
    "event_type": "user_created",
    "user_id": "1234567",
    "email": "user1234567@example.com",
    "timestamp": "2026-01-01T00:00:00Z",
}
#: What an entry costs the server, generously.
ENTRY_BYTES = 200
#: A server that evicts must have this share of its memory left after the benchmark's own.
MEMORY_SHARE_MAX = 0.8
#: A server that answers more commands a second than this has other work.
BUSY_COMMANDS = 500
#: Redis counts over the last 1.6 s, which may be those of a benchmark that has just ended.
BUSY_AGAIN_S = 2.0
EXPIRES_S = 3600
TURN_LIMIT_S = 120.0
LATENCY_MESSAGES = 400
LATENCY_INTERVAL_S = 0.002
_PAGE = 1000
_POLL_S = 0.005


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of several turns."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of the values. Raises StatisticsError if there are none."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class HandlerRate:
    """The rate of one kind of handler."""

    handler: str
    pool_per_s: Spread
    loop_per_s: Spread
    #: Turn by turn.
    ratio: Spread


@dataclass
class Result:
    """All that was measured, and on what."""

    server: str
    durability: str
    workers: int
    messages: int
    turns: int
    cores: int = os.cpu_count() or 1
    rates: list[HandlerRate] = field(default_factory=list)
    #: From the publishing of a message to the handler's first line, in an idle pool.
    latency_ms: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    url: str
    workers: int
    messages: int
    turns: int


async def run(redis: Redis, plan: Plan, say: Callable[[str], None]) -> Result:
    """Measure everything; call `say` with each step. Raises SupervisorError and redis-py's errors."""
    server = await describe(redis)
    result = Result(server.version, server.durability, plan.workers, plan.messages, plan.turns)
    async with own_keys(redis) as own:
        say(f"publishing {plan.messages:,} messages to {own.stream}")
        backlog = Backlog(redis, own, plan.messages)
        await backlog.fill()
        await backlog.require_counts(result.server)
        say(f"starting {counted(plan.workers, 'worker')}")
        async with bench_pool(plan.url, own.stream, own.host, plan.workers) as pool:
            for group in GROUPS:
                result.rates.append(await _rates(backlog, pool, group, plan, say))
            say("an idle pool")
            result.latency_ms = await _latency(redis, pool, own.latency_stream)
    return result


async def refuse_busy(redis: Redis, messages: int) -> None:
    """Raise SupervisorError where the benchmark would disturb others: the server is busy, or short of memory."""
    try:
        info: dict[str, Any] = await redis.info()
    except ResponseError:  # forbidden
        return
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    need = messages * ENTRY_BYTES
    if limit and used + need > MEMORY_SHARE_MAX * limit:
        raise SupervisorError(
            f"Redis uses {used:,} of {limit:,} bytes (maxmemory), and {messages:,} messages need some {need:,}:"
            " others would lose theirs; ask for fewer with --messages"
        )
    if int(info.get("instantaneous_ops_per_sec", 0)) > BUSY_COMMANDS:
        await asyncio.sleep(BUSY_AGAIN_S)
        info = await redis.info("stats")
    if (busy := int(info.get("instantaneous_ops_per_sec", 0))) > BUSY_COMMANDS:
        raise SupervisorError(
            f"Redis answers {busy:,} commands a second for others: the benchmark would slow them down, and they the"
            " benchmark; --anyway measures all the same"
        )


class Backlog:
    """A stream full of entries that several groups drain in turn."""

    def __init__(self, redis: Redis, own: OwnKeys, messages: int) -> None:
        self._redis = redis
        self._own = own
        self._messages = messages
        self.stream = own.stream

    async def fill(self) -> None:
        """Publish the entries, and create each group at the end of the stream."""
        for begin in range(0, self._messages, _PAGE):
            async with self._redis.pipeline(transaction=False) as pipe:
                for _ in range(min(_PAGE, self._messages - begin)):
                    pipe.xadd(self.stream, FIELDS)  # type: ignore[arg-type]  # dict is invariant
                pipe.expire(self.stream, EXPIRES_S)
                await pipe.execute()
        for group in (*GROUPS, LOOP_GROUP):
            await self._redis.xgroup_create(self.stream, group, id="$")
        latency = self._own.latency_stream
        await self._redis.xgroup_create(latency, LATENCY_GROUP, id="$", mkstream=True)
        await self._redis.expire(latency, EXPIRES_S)

    async def require_counts(self, server: str) -> None:
        """Raise SupervisorError when the server does not count what a group has read."""
        [first, *_] = await self._redis.xinfo_groups(self.stream)
        if "entries-read" not in first:
            raise SupervisorError(
                f"bench needs Redis 7.0 or newer, which counts what a group has read; this is {server}"
            )

    async def set_back(self, group: str) -> Look:
        """Set the group back to the beginning, and wake its readers. Return the moment before they were woken."""
        await self._redis.xgroup_setid(self.stream, group, id="0", entries_read=0)
        self._messages += 1
        # Read before the entry is sent: a short backlog may be drained before the reply has been seen here.
        begin = Look(time.perf_counter(), 0)
        await self._redis.xadd(self.stream, FIELDS)  # type: ignore[arg-type]
        return begin

    async def drained(self, group: str, begin: Look, alive: Callable[[], bool]) -> float:
        """Return the messages per second since `begin`. Raises SupervisorError if the drain stops or takes too long."""
        window, until_s = Window(self._messages), time.monotonic() + TURN_LIMIT_S
        window.saw(begin)
        while (done := await self._done(group)) < self._messages or not window.complete:
            window.saw(Look(time.perf_counter(), done))
            if time.monotonic() > until_s or (not alive() and await self._done(group) == done < self._messages):
                raise SupervisorError(f"group {group} stopped at {done:,} of {self._messages:,} messages")
            await asyncio.sleep(_POLL_S)
        return window.rate

    async def _done(self, group: str) -> int:
        for found in await self._redis.xinfo_groups(self.stream):
            if found["name"] == group.encode():
                return int(found["entries-read"] or 0) - int(found["pending"])
        raise SupervisorError(f"group {group} of {self.stream} is gone: did somebody delete it?")


async def _rates(backlog: Backlog, pool: BenchPool, group: str, plan: Plan, say: Callable[[str], None]) -> HandlerRate:
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(plan.turns + 1):
        begin = await backlog.set_back(group)
        one = await backlog.drained(group, begin, lambda: pool.runs)
        if not turn:  # it warms the pool up; the loop is a new process each time
            continue
        other = await _loop_turn(backlog, group, plan.url)
        ours.append(one)
        theirs.append(other)
        say(f"{TITLES[group]}, turn {turn} of {plan.turns}: {one:,.0f}/s, a redis-py loop {other:,.0f}/s")
    beside = [a / b for a, b in zip(ours, theirs, strict=True)]
    return HandlerRate(TITLES[group], Spread.of(ours), Spread.of(theirs), Spread.of(beside))


async def _loop_turn(backlog: Backlog, work: str, url: str) -> float:
    begin = await backlog.set_back(LOOP_GROUP)
    # Without the working directory, where a project may have a redis/ of its own.
    words = (sys.executable, "-P", "-m", "supervisor.bench.redis_py_loop", backlog.stream, LOOP_GROUP, work)
    environment = os.environ | {URL_VARIABLE: url}
    process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, env=environment)
    try:
        return await backlog.drained(LOOP_GROUP, begin, lambda: process.returncode is None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _latency(redis: Redis, pool: BenchPool, stream: str) -> dict[str, float]:
    begin_s = time.monotonic()
    for number in range(LATENCY_MESSAGES):
        await asyncio.sleep(max(0.0, begin_s + number * LATENCY_INTERVAL_S - time.monotonic()))
        await redis.xadd(stream, {"sent_ns": time.monotonic_ns()})
    latencies_ns: list[int] = []
    until_s = time.monotonic() + TURN_LIMIT_S
    while len(latencies_ns) < LATENCY_MESSAGES:
        if time.monotonic() > until_s:
            raise SupervisorError(f"the handler got {len(latencies_ns)} of {LATENCY_MESSAGES} messages")
        await asyncio.sleep(_POLL_S)
        latencies_ns = pool.latencies_ns()
    cuts = statistics.quantiles(latencies_ns, n=100)
    return {"p50": cuts[49] / 1e6, "p99": cuts[98] / 1e6, "messages": LATENCY_MESSAGES}
