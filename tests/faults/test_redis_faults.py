"""Redis that is gone, emptied, stopped or no longer the primary: no worker ends for it, and nothing is lost."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from tests.support.faults import Bounds, incarnations, outage_lines, ready_again_ms, shared_state_of
from tests.support.pool import Pool
from tests.support.recording import RECORD, SIMPLE, records, seen, times_ns
from tests.support.servers import RedisServer, default_binary
from tests.support.standins import now_s
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
#: Instead of waiting for a minute, the limits that it would exceed are shortened. The long form takes twice the time
#: of the lease, which can't be set.
DOWN_S = (4.0, pytest.param(20.0, marks=pytest.mark.long))

HOLDING = (
    RECORD
    + """
    import asyncio
    @handler("events", group="workers", timeout_s=600)
    async def handle(message: Message) -> None:
        record(message.fields["n"])
        while message.fields["n"].startswith("hold") and not os.path.exists("go"):
            await asyncio.sleep(0.02)
        record("done")
"""
)


def restarts(pool: Pool) -> list[int]:
    return [worker["restarts"] for worker in pool.ask("status")["workers"]]


def pending(redis: Any) -> int:
    return int(redis.xpending("events", "workers")["pending"])


def pause_s(seconds: float) -> None:
    """Sleep, because the test is about the time itself."""
    until_s = now_s() + seconds
    eventually(lambda: now_s() >= until_s, seconds + 20, 0.05)


def cpu_s(pids: list[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


@pytest.mark.parametrize("for_s", DOWN_S)
def test_32_redis_down(start_pool: StartPool, durable_server: Any, bound: Bounds, for_s: float) -> None:
    pool = start_pool(
        HOLDING,
        redis_url=durable_server.url,
        workers=3,
        config="[pool]\nbeat_limit_s = 2.0\nboot_limit_s = 3.0\n[redis]\nconnect_timeout_s = 1.0\n",
    )
    shared, before = shared_state_of(pool.pid), pool.pids()
    for n in range(30):
        durable_server.sync().xadd("events", {"n": f"hold{n}"})
    eventually(lambda: len(seen(pool)) == 30)
    durable_server.kill()
    down_s = now_s()
    (pool.folder / "go").touch()  # what is in hand is done while Redis does not take its acks
    eventually(lambda: seen(pool)["done"] == 30)
    eventually(lambda: pool.ask("status")["state"] == "degraded", 30)
    # A worker that starts meanwhile must wait for Redis too; that must not count as a failure.
    was = incarnations(shared, [0])
    os.kill(before[0], signal.SIGKILL)
    ready_again_ms(shared, was, time.monotonic_ns() - 1)
    spent_s = cpu_s([pool.pid, *pool.pids().values()])
    pause_s(max(0.0, down_s + for_s - now_s()))

    def all_wait() -> Any:
        found = pool.ask("status")
        states = {(worker["state"], worker["activity"]) for worker in found["workers"]}
        return found if states == {("READY", "wait_redis")} else None

    status = eventually(all_wait)
    spent_s = cpu_s([pool.pid, *pool.pids().values()]) - spent_s
    bound.check(f"CPU of 4 processes in {for_s:.0f} s without Redis", spent_s, 1, "s of CPU")
    assert [worker["restarts"] for worker in status["workers"]] == [1, 0, 0]
    complaints = [line for line in outage_lines(pool) if line["level"] == "warning"]
    assert 1 <= len(complaints) <= (now_s() - down_s) / 5 + 1, "one process of the pool logs, every five seconds"
    durable_server.start()
    with bound.within("Redis is back until a new message is handled", 4000):
        durable_server.sync().xadd("events", {"n": "new"})
        eventually(lambda: seen(pool)["new"] == 1, interval_s=0.005)
    eventually(lambda: pending(durable_server.sync()) == 0)
    pool.wait_ready()
    assert restarts(pool) == [1, 0, 0] and pool.pids()[1] == before[1] and pool.pids()[2] == before[2]
    assert [line["signal"] for line in pool.events("worker exited")] == ["SIGKILL"]
    mine = {text for pid, text, _ in records(pool) if pid == before[0] and text != "done"}
    assert {text: count for text, count in seen(pool).items() if count > 1 and text != "done"} == dict.fromkeys(mine, 2)


def test_33_redis_flushall_nogroup(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=3)
    redis, before = redis_server.sync(), pool.pids()
    times = []
    for cycle in range(2):
        assert redis.xinfo_groups("events")
        redis.flushall()
        flushed_ns = time.monotonic_ns()
        for n in range(30):
            redis.xadd("events", {"n": f"{cycle}.{n}"})
        texts = [f"{cycle}.{n}" for n in range(30)]
        eventually(lambda texts=texts: all(seen(pool)[text] for text in texts), interval_s=0.005)
        times.append((max(times_ns(pool, text)[0] for text in texts) - flushed_ns) / 1e6)
        eventually(lambda: pending(redis) == 0)
    bound.check("FLUSHALL until what is published then is handled", times, 1500)
    # While a key is not a stream, no group can be created on it.
    redis.delete("events")
    redis.set("events", "no stream")
    eventually(lambda: {worker["activity"] for worker in pool.ask("status")["workers"]} == {"wait_redis"})
    calls, spent_s = redis.info("stats")["total_commands_processed"], cpu_s(list(before.values()))
    pause_s(1.5)
    per_s = (redis.info("stats")["total_commands_processed"] - calls) / 1.5
    bound.check("commands a second while no group can be made", per_s, 60, "/s")
    bound.check("CPU of the 3 workers meanwhile", (cpu_s(list(before.values())) - spent_s) / 1.5, 0.3, "s/s")
    redis.delete("events")
    redis.xadd("events", {"n": "last"})
    with bound.within("the key is a stream again until its message is handled", 4000):
        eventually(lambda: seen(pool)["last"] == 1, interval_s=0.005)
    pool.wait_ready()
    assert pool.pids() == before and restarts(pool) == [0, 0, 0]
    assert set(seen(pool).values()) == {1}


@pytest.mark.long
def test_34_redis_slow_5s(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(HOLDING, redis_url=redis_server.url, workers=2, config="[pool]\nbeat_limit_s = 2.0\n")
    redis, before = redis_server.sync(), pool.pids()
    for n in range(20):
        redis.xadd("events", {"n": f"hold{n}"})
    eventually(lambda: len(seen(pool)) == 20)
    redis_server.pause()
    (pool.folder / "go").touch()
    ages = []
    until_s = now_s() + 5
    while now_s() < until_s:
        ages += [worker["beat_age_s"] * 1000 for worker in pool.ask("status")["workers"]]
        pause_s(0.25)
    bound.check("age of a beat while Redis is stopped", max(ages), 1500)
    assert not redis_server.answers()
    redis_server.resume()
    redis.xadd("events", {"n": "new"})
    with bound.within("Redis goes on until a new message is handled", 3000):
        eventually(lambda: seen(pool)["new"] == 1, interval_s=0.005)
    eventually(lambda: pending(redis) == 0)
    pool.wait_ready()
    assert pool.pids() == before and restarts(pool) == [0, 0]
    assert {text: count for text, count in seen(pool).items() if count != 1} == {"done": 21}


@pytest.fixture
def pair() -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary and its replica."""
    try:
        binary = default_binary()
    except LookupError as error:
        pytest.skip(str(error))
    at_once = ("--repl-diskless-sync-delay", "0")
    with (
        RedisServer(binary, tcp=True, options=at_once) as first,
        RedisServer(binary, tcp=True, options=at_once) as second,
    ):
        follow(second, first)
        yield first, second


def follow(replica: RedisServer, primary: RedisServer) -> None:
    replica.sync().replicaof("127.0.0.1", str(primary.port))
    eventually(lambda: replica.sync().info("replication")["master_link_status"] == "up", 20)


def is_in_step(replica: RedisServer, primary: RedisServer) -> bool:
    return bool(replica.sync().xlen("events") == primary.sync().xlen("events"))


@pytest.mark.long
def test_35_redis_failover_readonly(
    pair: tuple[RedisServer, RedisServer], start_pool: StartPool, bound: Bounds
) -> None:
    first, second = pair
    pool = start_pool(SIMPLE, redis_url=first.url, workers=2)
    before = pool.pids()
    for n in range(50):
        first.sync().xadd("events", {"n": f"a{n}"})
    eventually(lambda: sum(seen(pool).values()) == 50)
    eventually(lambda: pending(first.sync()) == 0)
    eventually(lambda: is_in_step(second, first) and pending(second.sync()) == 0)
    # The replica becomes the primary, and the pool's server its replica: it takes no write and no group read.
    second.sync().replicaof("NO", "ONE")
    follow(first, second)
    for n in range(50):
        second.sync().xadd("events", {"n": f"b{n}"})
    eventually(lambda: {worker["activity"] for worker in pool.ask("status")["workers"]} == {"wait_redis"})
    eventually(lambda: any("read only" in line["error"] for line in pool.events("can't read")))
    eventually(lambda: is_in_step(first, second))
    pause_s(3)
    assert sum(seen(pool).values()) == 50 and pool.pids() == before
    first.sync().replicaof("NO", "ONE")
    with bound.within("writable again until 50 waiting messages are handled", 4000):
        eventually(lambda: sum(seen(pool).values()) == 100, interval_s=0.005)
    eventually(lambda: pending(first.sync()) == 0)
    pool.wait_ready()
    assert pool.pids() == before and restarts(pool) == [0, 0] and set(seen(pool).values()) == {1}
