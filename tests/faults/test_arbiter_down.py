"""The arbiter killed, stopped, frozen with all of its children, or with a clock that jumps."""

import contextlib
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor.errors import NotRunningError
from tests.support.faults import Bounds, Watch
from tests.support.pool import Pool
from tests.support.recording import RECORD, SIMPLE, seen, times_ns
from tests.support.standins import Standins, is_gone, now_s
from tests.support.stepped_clock import SteppedClock
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]


def health(pool: Pool) -> tuple[int, dict[str, Any]]:
    """Return the status that a load balancer sees."""
    try:
        with urllib.request.urlopen(f"{pool.base_url}/health", timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def children_of(pool: Pool | Standins) -> list[int]:
    """Return the pids of workers and services."""
    status = pool.ask("status")
    return [child["pid"] for child in [*status["workers"], *status["services"]]]


def stop_all(pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: all(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids))


def until(at_s: float) -> None:
    """Sleep, because the test is about the time itself."""
    eventually(lambda: now_s() >= at_s, at_s - now_s() + 20, 0.02)


def test_21_supervisor_kill9(start_pool: StartPool, redis_server: Any, watch: Watch, bound: Bounds) -> None:
    held, cycles = 20, 0
    pool = start_pool(
        RECORD
        + """
    import asyncio
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        record(message.fields["n"])
        if os.path.exists("hold"):
            await asyncio.Event().wait()
        record("done")
""",
        redis_url=redis_server.url,
        workers=3,
        api=True,
    )
    redis, again = redis_server.sync(), []

    def kill() -> float:
        """Kill the arbiter while messages run; return how long its children lived on."""
        nonlocal cycles
        cycles += 1
        (pool.folder / "hold").touch()
        for n in range(held):
            redis.xadd("events", {"n": f"{cycles}.{n}"})
        eventually(lambda: sum(text.startswith(f"{cycles}.") for text in seen(pool)) == held)
        pids = children_of(pool)
        assert len(pids) == 5 and redis.xpending("events", "workers")["pending"] == held
        killed_s = time.monotonic()
        pool.send(signal.SIGKILL)
        eventually(lambda: all(map(is_gone, pids)), 20, 0.002)
        gone_ms = (time.monotonic() - killed_s) * 1000
        assert pool.wait() == -signal.SIGKILL
        with pytest.raises(NotRunningError):
            pool.ask("ping")
        (pool.folder / "hold").unlink()
        pool.start(ready=False)
        eventually(lambda: seen(pool)["done"] == held * cycles, interval_s=0.005)
        again.append((time.monotonic() - killed_s) * 1000)
        pool.wait_ready()
        watch.measure(pool)
        assert not set(pids) & set(children_of(pool))
        return gone_ms

    bound.check("kill -9 of the arbiter until its 5 children are gone", [kill() for _ in range(2)], 100)
    bound.check("... until a new one has handled what was in hand", again, 4000)
    assert all(count == 2 for text, count in seen(pool).items() if text != "done")
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)


@pytest.mark.long
def test_22_supervisor_sigstop_10s(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=2, api=True)
    redis, before = redis_server.sync(), children_of(pool)
    eventually(lambda: health(pool)[0] == 200)
    stop_all([pool.pid])
    stopped_s = time.monotonic()
    eventually(lambda: health(pool)[0] == 503, 30, 0.05)
    bound.check("SIGSTOP of the arbiter until /health says 503", (time.monotonic() - stopped_s) * 1000, 6000)
    assert health(pool)[1]["state"] == "down"
    latencies = []
    for n in range(5):  # and all the while the workers work
        published_ns = time.monotonic_ns()
        redis.xadd("events", {"n": n})
        [at_ns] = eventually(lambda n=n: times_ns(pool, str(n)), interval_s=0.005)
        latencies.append((at_ns - published_ns) / 1e6)
        until(stopped_s + 2 * (n + 1))
    assert now_s() - stopped_s >= 10 and health(pool)[0] == 503
    bound.check("a message meanwhile, until it is handled", latencies, 100)
    pool.send(signal.SIGCONT)
    with bound.within("SIGCONT until /health says 200", 2500):
        eventually(lambda: health(pool)[0] == 200)
    [late] = eventually(lambda: late_lines(pool))
    assert late["late_s"] > 8
    assert children_of(pool) == before and not left_lines(pool)
    pool.wait_ready()


def late_lines(pool: Pool | Standins) -> list[dict[str, Any]]:
    """Return one of the log lines; the group of workers and the group of services both write it."""
    return pool.events("arbiter stalled")[:1]


def left_lines(pool: Pool | Standins) -> list[dict[str, Any]]:
    return [
        *pool.events("worker exited"),
        *pool.events("service exited"),
        *pool.events("worker unresponsive"),
        *pool.events("service unresponsive"),
    ]


@pytest.mark.long
@pytest.mark.parametrize("frozen_s", [3, 10])
def test_23_freeze_tree_thaw_parent_first(
    start_pool: StartPool, standins: Callable[..., Standins], bound: Bounds, frozen_s: float
) -> None:
    # A pool with its embedded server, and beside it one with a deadline that expires during the suspension.
    pool = start_pool(SIMPLE, workers=4, api=True, config="[pool]\nbeat_limit_s = 2.0\n")
    limited = standins(workers=3, orders={"0": "long"}, pool="beat_limit_s = 2.0")
    before, others = children_of(pool), children_of(limited)
    assert len(before) == 4 + 3
    frozen = [pool.pid, limited.pid, *before, *others]
    stop_all(frozen)
    until(now_s() + frozen_s)  # what is tested is this sleep
    for parent in (pool, limited):
        parent.send(signal.SIGCONT)
    for parent in (pool, limited):
        assert eventually(lambda parent=parent: late_lines(parent), 20)[0]["late_s"] > frozen_s - 2
    until(now_s() + 1)  # the children sleep on a little
    for pid in [*before, *others]:
        os.kill(pid, signal.SIGCONT)
    assert pool.command("publish", "events", "n=1").returncode == 0
    eventually(lambda: seen(pool) == {"1": 1})
    pool.wait_ready()
    assert children_of(pool) == before and not left_lines(pool)
    bound.check("healthy workers and services killed for a sleep", len(left_lines(pool)), 0, "")
    # Its deadline was extended: 5 s from the start plus the suspension.
    assert sorted(limited.pids().values()) == sorted(others[:3])
    left = eventually(lambda: limited.worker(0)["last_exit"], 30)
    assert left["reason"] == "deadline" and left["uptime_s"] > 4 + frozen_s
    assert {line["slot"] for line in limited.events("worker exited")} == {0}
    limited.wait_ready()


def test_24_clock_step(start_pool: StartPool, redis_server: Any, tmp_path: Path, bound: Bounds) -> None:
    clock = SteppedClock(tmp_path)
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="workers", retry_base_s=1)
    async def handle(message: Message) -> None:
        record(f"{message.fields['n']}@{time.time():.0f}")
        if message.fields["n"].startswith("later") and message.deliveries == 1:
            raise ValueError("once")
""",
        redis_url=redis_server.url,
        workers=2,
        env=clock.environment,
    )
    redis, before = redis_server.sync(), children_of(pool)
    retries = []
    for step_s in (3600, -3600, 0):
        redis.xadd("events", {"n": f"later{step_s}"})
        eventually(lambda name=f"later{step_s}": [text for text in seen(pool) if text.startswith(f"{name}@")])
        clock.step(step_s)
        redis.xadd("events", {"n": f"now{step_s}"})
        found = eventually(lambda name=f"now{step_s}": [text for text in seen(pool) if text.startswith(f"{name}@")])
        told_s = float(found[0].split("@")[1])
        assert abs(told_s - time.time() - step_s) < 60, "the worker's clock did jump"
        pool.send(signal.SIGUSR1)
        line = eventually(lambda step_s=step_s: [x for x in pool.events("status") if jumped(x, step_s)])[-1]
        assert line["state"] == "healthy"
        both = eventually(lambda name=f"later{step_s}@": both_of(pool, name), 20)
        retries.append((both[1] - both[0]) / 1e6)
    bound.check("a retry that is due in 1 s, across a step of an hour", retries, 1400)
    assert min(retries) > 700
    assert (
        children_of(pool) == before and not left_lines(pool) and all(line["late_s"] < 60 for line in late_lines(pool))
    )
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)


def jumped(line: dict[str, Any], step_s: float) -> bool:
    """Return whether the arbiter's clock had jumped by this much when it wrote the line."""
    return abs(datetime.fromisoformat(line["timestamp"]).timestamp() - time.time() - step_s) < 60


def both_of(pool: Pool, prefix: str) -> list[int]:
    """Wait for a message's two attempts and return their times."""
    with contextlib.suppress(ValueError):
        found = sorted(at_ns for text in seen(pool) if text.startswith(prefix) for at_ns in times_ns(pool, text))
        return found if len(found) == 2 else []
    return []
