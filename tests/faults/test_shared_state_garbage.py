"""Garbage in shared memory: a worker that overwrites its own fields harms only itself."""

import os
import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.shared_state import CONSUMERS_MAX, SLOT_FIELDS, SharedState, SlotField
from tests.support.faults import Bounds, shared_state_of
from tests.support.pool import Pool
from tests.support.recording import SIMPLE, records, seen
from tests.support.standins import Standins, now_s
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
#: The worker's own fields: those behind the arbiter's eight, and those of its consumers.
OWN = range(SlotField.BEAT_NS, SLOT_FIELDS + CONSUMERS_MAX * 8)
ABSURD = (1, 2**31, 2**63, 2**64 - 1)


def write(shared: SharedState, slot: int, value: Callable[[], int]) -> None:
    """Overwrite the fields as the worker in `slot` could, which has the same mapping."""
    words: Any = shared.slot(slot)
    for word in OWN:
        words.set(word, value())


@pytest.mark.long
def test_56_shm_garbage_from_worker(standins: Callable[..., Standins], bound: Bounds) -> None:
    pool = standins(workers=len(ABSURD) + 2, pool="beat_limit_s = 1.0")
    shared, before = shared_state_of(pool.pid), pool.pids()
    vandal, bystander = len(ABSURD), len(ABSURD) + 1
    slowest_ms = 0.0
    for slot, value in enumerate(ABSURD):
        write(shared, slot, lambda value=value: value)
        slowest_ms = max(slowest_ms, look(pool))
    random_of = random.Random(56)
    until_s = now_s() + 1
    while now_s() < until_s:  # and one that does nothing else
        write(shared, vandal, lambda: random_of.getrandbits(64))
        slowest_ms = max(slowest_ms, look(pool))
    bound.check("the status of a pool with absurd words", slowest_ms, 250)
    after = pool.wait_ready()
    assert after["pid"] == pool.pid and pool.pids()[bystander] == before[bystander]
    assert not pool.events("internal error")
    spoilt = {line["slot"] for line in pool.events("worker exited")}
    assert bystander not in spoilt and spoilt, "workers with a passed deadline were killed"
    # A worker that wrote a beat in the far future and then hangs is still found.
    os.kill(pool.pids()[0], signal.SIGSTOP)
    shared.slot(0).set(SlotField.BEAT_NS, 2**64 - 1)
    stopped_s = now_s()
    eventually(lambda: pool.events("worker unresponsive") and pool.events("worker unresponsive")[-1]["slot"] == 0, 20)
    bound.check("a beat that can't be, then SIGSTOP, until it is found", now_s() - stopped_s, 3, "s")
    pool.wait_ready()


def look(pool: Standins) -> float:
    """Return how long a complete status takes in ms."""
    asked_s = now_s()
    assert len(pool.status()["workers"]) == len(ABSURD) + 2
    return (now_s() - asked_s) * 1000


def test_56_shm_garbage_and_its_successor(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # A new worker starts with the fields that the dead one left.
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=2)
    redis, shared, before = redis_server.sync(), shared_state_of(pool.pid), pool.pids()
    os.kill(before[0], signal.SIGSTOP)
    write(shared, 0, lambda: 2**64 - 1)
    os.kill(before[0], signal.SIGKILL)
    with bound.within("killed with its slot scribbled over until its successor is READY", 3000):
        eventually(lambda: pool.worker(0)["restarts"] == 1 and pool.worker(0)["state"] == "READY")
    count = 0

    def has_worked() -> bool:
        nonlocal count
        redis.xadd("events", {"n": count})
        count += 1
        return pool.pids()[0] in {pid for pid, _, _ in records(pool)}

    eventually(has_worked, what="the successor handles messages")
    eventually(lambda: seen(pool) == {str(n): 1 for n in range(count)})
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert pool.pids()[1] == before[1] and "Traceback" not in pool.output, "garbage in counters is tolerated"
    shown = pool.command("status")
    assert shown.returncode == 0 and "Traceback" not in shown.stderr
    # Also when no consumer is free, as after many restarts with different handlers.
    # The handler itself uses two: its stream's and its replayed messages.
    others = [shared.slot(0).consumer(f"other{n}", "group") for n in range(CONSUMERS_MAX)]
    assert others.count(None) == 2
    os.kill(pool.pids()[0], signal.SIGKILL)
    eventually(lambda: pool.worker(0)["restarts"] == 2 and pool.worker(0)["state"] == "READY")
