"""Workers that crash repeatedly: what that costs, and that the rest of the pool works on."""

from collections.abc import Callable
from typing import Any

import psutil
import pytest

from supervisor.core.backoff import backoff_s
from tests.support.faults import Bounds, Watch
from tests.support.pool import Pool
from tests.support.recording import RECORD, records, seen
from tests.support.standins import Standins, now_s
from tests.support.waiting import eventually

Make = Callable[..., Standins]


def until(at_s: float) -> None:
    """Sleep, because the test is about the time itself."""
    eventually(lambda: now_s() >= at_s, at_s - now_s() + 5, 0.05)


def cpu_s(pool: Standins) -> float:
    return sum(psutil.Process(pool.pid).cpu_times()[:2])


def spawns(pool: Standins, from_s: float, for_s: float) -> int:
    return sum(from_s <= note["at_s"] <= from_s + for_s for note in pool.notes("spawned"))


@pytest.mark.long
def test_14_crash_loop_all(standins: Make, watch: Watch, bound: Bounds) -> None:
    # Two pools at the same time: one for the cost, one that recovers once the cause is fixed.
    two = standins(workers=2, orders={"*": "crash_soon"}, ready=False)
    four = standins(workers=4, orders={"*": "crash_soon"}, ready=False)
    began_s = eventually(lambda: two.notes("spawned"))[0]["at_s"]
    used_s = cpu_s(two)

    eventually(lambda: four.status()["breaker_open"] and not four.pids(), 40)
    assert four.status()["state"] in ("down", "degraded")
    # max(10, 3 × 4) crashes are allowed and one more opens the breaker; other starts may have been in progress.
    spawned = len(four.notes("spawned"))
    assert 13 <= spawned <= 13 + 4
    four.order({})  # the canary stays up
    eventually(lambda: any(worker["state"] == "READY" for worker in four.status()["workers"]), 30)
    assert len(four.notes("spawned")) == spawned + 1
    assert four.status()["state"] == "degraded"

    until(began_s + 15)
    used_s = cpu_s(two) - used_s
    count = spawns(two, began_s, 15)
    assert count >= 10, "they crashed and were restarted"
    bound.check("spawns of two workers that crash after 0.3 s, in 15 s", count, 16, "")
    bound.check("the arbiter's share of a CPU meanwhile", used_s / 15 * 100, 5, "%")
    status = two.status()
    assert status["breaker_open"] is True and status["state"] in ("down", "degraded")
    assert {worker["last_exit"]["reason"] for worker in status["workers"]} == {"exit"}
    assert two.events("crash breaker opened")


def test_15_crash_loop_alternating(standins: Make, bound: Bounds) -> None:
    # Never the same worker twice in a row; each one runs only for its turn.
    pool = standins(workers=3, orders={"0": "crash_in_turn", "1": "crash_in_turn"}, ready=False)
    began_s = eventually(lambda: pool.notes("turn"))[0]["at_s"]
    eventually(lambda: pool.status()["breaker_open"], 30)
    opened_s, spawned = now_s(), sum(worker["incarnation"] for worker in pool.status()["workers"])
    until(opened_s + 3)
    turns = [note["slot"] for note in pool.notes("turn")]
    assert len(turns) >= 11 and all(turns[n] != turns[n + 1] for n in range(len(turns) - 1))
    bound.check("spawns of 3 workers of which two crash in turn, until the breaker opens", len(turns) + 3, 16, "")
    assert opened_s - began_s > 1, "each waited for its backoff"
    assert len(pool.notes("spawned")) == spawned, "then no worker is started"
    status = pool.status()
    assert status["state"] == "degraded", "the third worker continues"
    assert pool.worker(2)["state"] == "READY" and pool.worker(2)["restarts"] == 0


@pytest.mark.long
def test_16_crash_loop_2s_uptime(standins: Make, bound: Bounds) -> None:
    # Being READY and working for two seconds each time must not reset the backoff.
    pool = standins(workers=4, orders={"*": "crash_late"})
    status = eventually(lambda: found if (found := pool.status())["breaker_open"] else None, 40)
    opened_s, restarts = now_s(), sum(worker["restarts"] for worker in status["workers"])
    waits: dict[int, list[float]] = {}
    for line in pool.events("worker exited"):
        assert line["code"] == 3 and line["uptime_s"] > 1.9
        waits.setdefault(line["slot"], []).append(line["next_start_s"])
    for found in waits.values():
        for crash, wait_s in enumerate(found[1:], 1):
            longest_s = backoff_s(crash, 0.1, 30.0, lambda: 1.0)
            assert longest_s * 0.6 <= wait_s <= longest_s, found
    bound.check("spawns of 4 workers that crash after 2 s, until the breaker opens", len(pool.notes("spawned")), 17, "")
    until(opened_s + 2.5)
    assert sum(worker["restarts"] for worker in pool.status()["workers"]) == restarts
    assert pool.status()["state"] in ("down", "degraded")


def test_17_poison_message_in_batch_200(start_pool: Callable[..., Pool], redis_server: Any, bound: Bounds) -> None:
    redis = redis_server.sync()
    redis.xgroup_create("events", "workers", "0", mkstream=True)
    for n in range(200):  # they are there before the first read, which so brings all of them
        redis.xadd("events", {"n": n})
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="workers", batch_size=200, concurrency=200)
    async def handle(message: Message) -> None:
        if message.fields["n"] == "100":
            record("death")
            os._exit(1)
        record(message.fields["n"])
""",
        redis_url=redis_server.url,
        workers=1,
        ready=False,
    )
    dead = "supervisor:{events}:workers:dead"
    eventually(lambda: redis.xlen(dead) == 1, 30)
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0, 30)
    [(_, letter)] = redis.xrange(dead)
    assert letter[b"field:n"] == b"100"
    assert letter[b"reason"] == b"crashed the worker"
    counts = seen(pool)
    deaths = [at_ns for _, text, at_ns in records(pool) if text == "death"]
    bound.check("deaths by one poison message among 200", counts.pop("death"), 4, "")
    bound.check("its first death until its last", (deaths[-1] - deaths[0]) / 1e6, 2000)
    assert len(counts) == 199
    assert sum(counts.values()) <= 199 + 100, "messages that ran before it run at most once more"
    pool.wait_ready()
