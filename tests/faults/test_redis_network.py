"""A whole pool on a network that breaks, and on a server that comes back without its data."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.test_redis_faults import cpu_s, pause_s, pending, restarts
from tests.support.faults import Bounds, outage_lines
from tests.support.pool import Pool
from tests.support.proxy import Proxy
from tests.support.recording import SIMPLE, seen
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
LASTS_S = 3.0
RESETS_S = 3.0
WORKERS = 2


@pytest.fixture
def proxy(redis_server: Any) -> Iterator[Proxy]:
    with Proxy(redis_server.url) as made:
        yield made


def pids(pool: Pool) -> dict[str, int]:
    """Return the pids of the workers and the keeper."""
    status = pool.ask("status")
    return {str(child.get("slot", child.get("name"))): child["pid"] for child in status["workers"] + status["services"]}


@pytest.mark.parametrize("how", ["refuse", pytest.param("black_hole", marks=pytest.mark.long)])
def test_the_way_to_redis_is_closed(
    how: str, start_pool: StartPool, proxy: Proxy, redis_server: Any, bound: Bounds
) -> None:
    config = "[consumer]\nblock_ms = 500\n[redis]\nconnect_timeout_s = 1.0\n"
    pool = start_pool(SIMPLE, redis_url=proxy.url, workers=WORKERS, config=config)
    before, redis = pids(pool), redis_server.sync()
    closed_s = time.monotonic()
    proxy.set(**{how: True})
    if how == "refuse":
        assert proxy.reset() >= 2 * WORKERS
    spent_s = cpu_s(list(before.values()))
    pause_s(LASTS_S)
    spent_s = cpu_s(list(before.values())) - spent_s
    proxy.set()
    redis.xadd("events", {"n": "new"})
    # A connection that fell into the hole gets the usual time limit.
    with bound.within(f"the way is open until a message is handled ({how})", 2000 if how == "refuse" else 5000):
        eventually(lambda: seen(pool)["new"] == 1, interval_s=0.005)
    bound.check(f"CPU of a process meanwhile ({how})", spent_s / LASTS_S / len(before), 0.1, "s/s")
    assert proxy.did["refused" if how == "refuse" else "swallowed bytes"] > 0
    said = outage_lines(pool)
    assert 1 <= len(said) <= (WORKERS + 1) * (1 + (time.monotonic() - closed_s) // 5)
    eventually(lambda: pending(redis) == 0)
    pool.wait_ready()
    assert pids(pool) == before and restarts(pool) == [0] * WORKERS


@pytest.mark.long
def test_all_connections_are_reset_again_and_again(
    start_pool: StartPool, proxy: Proxy, redis_server: Any, bound: Bounds
) -> None:
    """The keeper's connections, too, which are idle most of the time."""
    pool = start_pool(SIMPLE, redis_url=proxy.url, workers=WORKERS)
    before, redis = pids(pool), redis_server.sync()
    spent_s, until_s, sent = cpu_s(list(before.values())), time.monotonic() + RESETS_S, 0
    while time.monotonic() < until_s:
        redis.xadd("events", {"n": str(sent)})
        sent += 1
        proxy.reset()
        pause_s(0.2)
    spent_s = (cpu_s(list(before.values())) - spent_s) / RESETS_S / len(before)
    assert proxy.did["reset"] > 20
    eventually(lambda: len(seen(pool)) == sent, interval_s=0.02)
    eventually(lambda: pending(redis) == 0)
    bound.check("CPU of a process while all is reset five times a second", spent_s, 0.1, "s/s")
    pool.wait_ready()
    assert pids(pool) == before and restarts(pool) == [0] * WORKERS
    said = outage_lines(pool)
    assert len(said) <= WORKERS * 3
    assert set(seen(pool).values()) == {1}


def test_a_server_that_comes_back_empty(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    """The server has lost the messages that are in hand, so it ignores their acks."""
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=WORKERS)
    before = pids(pool)
    for n in range(20):
        redis_server.sync().xadd("events", {"n": str(n)})
    redis_server.kill()
    redis_server.start()
    redis = redis_server.sync()
    redis.xadd("events", {"n": "new"})
    with bound.within("an empty server until its first message is handled", 2000):
        eventually(lambda: seen(pool)["new"] == 1, interval_s=0.005)
    eventually(lambda: pending(redis) == 0)
    eventually(lambda: sum("group created again" in line for line in pool.lines) == 1)
    pool.wait_ready()
    assert pids(pool) == before
    assert sum("group created again" in line for line in pool.lines) == 1


@pytest.mark.long
def test_a_pool_shrinks_without_redis(start_pool: StartPool, durable_server: Any) -> None:
    """A worker that leaves can't hand over what it holds; a keeper does that later, and no worker fails."""
    pool = start_pool(SIMPLE, redis_url=durable_server.url, workers=3, config="[redis]\nconnect_timeout_s = 0.5\n")
    durable_server.kill()
    eventually(lambda: {worker["activity"] for worker in pool.ask("status")["workers"]} == {"wait_redis"})
    pool.ask("scale", n=1)
    left = eventually(lambda: found if len(found := pool.events("worker exited")) == 2 else [], 20)
    assert {(line["code"], line.get("signal")) for line in left} == {(0, None)}, left
    assert "Traceback" not in pool.output
    durable_server.start()
    pool.wait_ready()
