"""Workers that die: killed, crashed in C code, or exited without being asked."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.faults import Bounds, Watch, incarnations, ready_again_ms, shared_state_of
from tests.support.pool import Pool
from tests.support.recording import HOLDING, RECORD, SIMPLE, records, seen, times_ns
from tests.support.standins import Standins
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]


def test_01_kill9_one(start_pool: StartPool, redis_server: Any, watch: Watch, bound: Bounds) -> None:
    def kill_each() -> list[float]:
        # Each slot is killed once, so that the restart is measured and not the backoff.
        pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=4)
        shared, before = shared_state_of(pool.pid), pool.pids()
        times: list[float] = []
        for slot, pid in before.items():
            was = incarnations(shared, [slot])
            killed_ns = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            times += ready_again_ms(shared, was, killed_ns).values()
        after = pool.wait_ready()["workers"]
        assert all(worker["last_exit"]["signal"] == signal.SIGKILL for worker in after)
        assert all(worker["pid"] != before[worker["slot"]] and worker["restarts"] == 1 for worker in after)
        for line in pool.events("worker exited"):
            assert line["pid"] == before[line["slot"]] and line["signal"] == "SIGKILL" and line["next_start_s"] == 0
        watch.assert_flat()
        assert pool.stop() == 0
        return times

    bound.check("kill -9 of one until READY", kill_each(), 100)


@pytest.mark.parametrize("pools", [1, pytest.param(3, marks=pytest.mark.long)])
def test_02_kill9_all(start_pool: StartPool, redis_server: Any, watch: Watch, bound: Bounds, pools: int) -> None:
    def kill_all() -> list[float]:
        times: list[float] = []
        for _ in range(pools):  # a second time in the same pool, a slot would wait for its backoff
            pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=8)
            shared, before = shared_state_of(pool.pid), pool.pids()
            was = incarnations(shared, list(before))
            killed_ns = time.monotonic_ns()
            for pid in before.values():
                os.kill(pid, signal.SIGKILL)
            times.append(max(ready_again_ms(shared, was, killed_ns).values()))
            after = pool.wait_ready()["workers"]
            assert [worker["last_exit"]["signal"] for worker in after] == [signal.SIGKILL] * 8
            assert not set(before.values()) & {worker["pid"] for worker in after}
            watch.assert_flat()
            assert pool.stop() == 0
        return times

    bound.check("kill -9 of all 8 until all are READY", kill_all(), 300)


def test_03_kill9_during_batch(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    held = 50
    pool = start_pool(
        HOLDING,
        redis_url=redis_server.url,
        workers=1,
    )
    redis = redis_server.sync()
    for n in range(held):
        redis.xadd("events", {"n": n})
    eventually(lambda: len(seen(pool)) == held)
    assert redis.xpending("events", "workers")["pending"] == held
    (pool.folder / "go").touch()
    dead = pool.pids()[0]
    killed_ns = time.monotonic_ns()
    os.kill(dead, signal.SIGKILL)
    eventually(lambda: seen(pool)["done"] == held, interval_s=0.005)
    bound.check(
        f"kill -9 until all {held} in hand have run again", (max(times_ns(pool, "done")) - killed_ns) / 1e6, 1000
    )
    counts = seen(pool)
    assert all(counts[str(n)] == 2 for n in range(held)), "once by the dead worker, once by its successor"
    assert {pid for pid, text, _ in records(pool) if text == "done"} == {pool.pids()[0]}
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert len(redis.xinfo_consumers("events", "workers")) == 1
    assert pool.worker(0)["last_exit"]["signal"] == signal.SIGKILL


def test_04_segv_ctypes(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(
        RECORD
        + """
    import ctypes
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        record(message.fields["n"])
        try:
            os.close(os.open("crashed", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        ctypes.string_at(0)
""",
        redis_url=redis_server.url,
        workers=2,
    )
    shared = shared_state_of(pool.pid)
    was = incarnations(shared, [0, 1])
    for n in range(2):
        redis_server.sync().xadd("events", {"n": n})
    left = eventually(lambda: pool.events("worker exited"))[0]
    assert left["signal"] == "SIGSEGV" and left["reason"] == "signal" and left["last_started"]
    crashed_ns = min(at_ns for pid, _, at_ns in records(pool) if pid == left["pid"])
    slot = left["slot"]
    took_ms = ready_again_ms(shared, {slot: was[slot]}, crashed_ns)[slot]
    bound.check("SIGSEGV until READY", took_ms, 300)
    [line] = pool.events("worker stack dump")
    assert "Segmentation fault" in line["stack"] and "handlers.py" in line["stack"] and "string_at" in line["stack"]
    eventually(lambda: sum(seen(pool).values()) == 3)
    eventually(lambda: redis_server.sync().xpending("events", "workers")["pending"] == 0)
    assert pool.wait_ready()["workers"][1 - slot]["restarts"] == 0


def test_05_exit0_unexpected(standins: Callable[..., Standins], bound: Bounds) -> None:
    # All first incarnations exit with code 0 without being asked.
    pool = standins(workers=4, orders={"*": "exit0"}, ready=False)
    eventually(lambda: len(pool.notes("spawned")) == 8)
    status = pool.wait_ready()
    for worker in status["workers"]:
        assert (worker["last_exit"]["reason"], worker["last_exit"]["code"]) == ("exit", 0)
        assert worker["incarnation"] == 2 and worker["restarts"] == 1
    left = {note["pid"]: note for note in pool.notes("left")}
    times = []
    for first in pool.notes("spawned"):
        if first["pid"] in left:
            again = [
                n["at_s"] for n in pool.notes("spawned") if n["slot"] == first["slot"] and n["pid"] != first["pid"]
            ]
            times.append((again[0] - left[first["pid"]]["at_s"]) * 1000)
    bound.check("exit 0 unasked until its successor runs", times, 200)
    assert [line["next_start_s"] for line in pool.events("worker exited")] == [0] * 4, (
        "a crash, but the first one of each slot"
    )
