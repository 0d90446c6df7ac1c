"""Signals at the wrong moment: while the arbiter forks, restarts or drains, and many at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor.errors import EXIT_DRAIN, EXIT_OK
from supervisor.shared_state import SlotField
from tests.support.faults import Bounds, Watch, shared_state_of, zombies
from tests.support.pool import Pool
from tests.support.recording import RECORD, SIMPLE, seen
from tests.support.standins import HANDLERS, ROOT, Standins, is_gone, now_s
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
Make = Callable[..., Standins]


def test_25_sigterm_mid_batch(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(
        RECORD
        + """
    import asyncio
    @handler("events", group="workers", concurrency=20)
    async def handle(message: Message) -> None:
        record("begun")
        await asyncio.sleep(0.5)
        record("done")

    @handler("plain", group="workers", concurrency=4)
    def plain(message: Message) -> None:
        record("begun")
        time.sleep(0.5)
        record("done")
""",
        redis_url=redis_server.url,
        workers=2,
    )
    redis = redis_server.sync()
    for stream, count in (("events", 70), ("plain", 20)):  # more than they have in hand
        for n in range(count):
            redis.xadd(stream, {"n": n})
    eventually(lambda: seen(pool)["begun"] >= 2 * (20 + 4))
    assert seen(pool)["done"] < seen(pool)["begun"]
    with bound.within("SIGTERM until it has left, half a second of work in hand", 1500):
        pool.send(signal.SIGTERM)
        assert pool.wait() == EXIT_OK
    counts = seen(pool)
    assert counts["begun"] == counts["done"] < 90, "started messages were finished, and no others"
    assert {line["reason"] for line in pool.events("worker exited")} == {"drained"}
    acked = 0
    for stream in ("events", "plain"):
        [group] = redis.xinfo_groups(stream)
        acked += group["entries-read"] - group["pending"]
    assert acked == counts["done"], "exactly the completed messages were acked"
    # Messages that had only been read remain for the next start.
    pool.start()
    eventually(lambda: seen(pool)["done"] == 90, 30, 0.1)
    assert seen(pool)["begun"] == 90


@pytest.mark.parametrize("forks", [200, pytest.param(1000, marks=pytest.mark.long)])
def test_26_sigterm_in_fork_window(bound: Bounds, forks: int) -> None:
    # Each signal takes effect only in the process that it was sent to.
    storms = {
        ("child", forks): {"heard": 0, "ends": {"SIGTERM": forks}},
        ("parent", forks): {"heard": forks, "ends": {"code 7": forks}},
        ("handler", forks // 5): {"heard": 0, "ends": {"code 9": forks // 5}},
    }
    with bound.within(f"{forks * 11 // 5} forks with a SIGTERM inside", 90_000):
        running = {
            storm: subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_window", *map(str, storm)],
                cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for storm in storms
        }  # fmt: skip
        ended = {storm: (*process.communicate(timeout=90), process.returncode) for storm, process in running.items()}
    for storm, (out, err, code) in ended.items():
        assert (code, err) == (0, "")
        assert json.loads(out) == storms[storm], storm


def test_26_sigterm_in_fork_window_of_a_pool(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # In a real pool, each worker is killed, and its successor gets a SIGTERM as soon as it has a pid.
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=8)
    shared, before, arbiter = shared_state_of(pool.pid), pool.pids(), pool.pid
    redis, count = redis_server.sync(), 0
    delays: list[float] = []
    for slot, pid in before.items():
        for _ in range(100):
            redis.xadd("events", {"n": count})
            count += 1
        words = shared.slot(slot)
        os.kill(pid, signal.SIGKILL)
        until_s = now_s() + 20
        while words.get(SlotField.PID) in (pid, 0):  # no sleep: it is hit while it cleans up after the fork
            assert now_s() < until_s
        born = words.get(SlotField.PID)
        os.kill(born, signal.SIGTERM)
        delays.append((time.monotonic_ns() - words.get(SlotField.SPAWN_NS)) / 1e6)
        eventually(lambda born=born: is_gone(born), 20, 0.002)
    status = pool.wait_ready()
    bound.check("SIGTERM after the fork began", delays, 1000)
    assert status["pid"] == arbiter and not pool.events("draining")
    assert [worker["restarts"] for worker in status["workers"]] == [2] * 8
    for worker in status["workers"]:
        assert (worker["last_exit"]["signal"], worker["last_exit"]["code"]) in ((signal.SIGTERM, None), (None, 0))
    eventually(lambda: set(seen(pool)) == {str(n) for n in range(count)}, what="none is lost")
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert "Traceback" not in pool.output


@pytest.mark.parametrize("phases", [(0, 2, 3, 4), pytest.param(range(6), marks=pytest.mark.long)], ids=["some", "all"])
def test_27_term_during_rolling_restart(standins: Make, bound: Bounds, phases: Sequence[int]) -> None:
    # In each phase: the preflight, the exec, the start of the new image, the first slots.
    pools = [standins(workers=3, ready=False) for _ in phases]
    for pool in pools:
        pool.wait_ready()
    times = []
    for number, pool in zip(phases, pools, strict=True):
        status = pool.status
        if number == 0:  # its check takes longer than anybody waits
            (pool.folder / "handlers.py").write_text(f"import time\ntime.sleep(30)\n{HANDLERS}")
        pool.send(signal.SIGHUP)
        if number < 3:  # by time: 50, 200, 350 ms lie in the check, or in the exec
            at_s = now_s() + 0.05 + 0.15 * number
            eventually(lambda at_s=at_s: now_s() >= at_s, interval_s=0.002)
        elif number == 3:
            # The new image has no handler yet; the signal stays pending until it has.
            eventually(lambda pool=pool: pool.notes("left") or is_starting(pool), interval_s=0.002)
        else:
            done = number - 4
            eventually(lambda s=status, d=done: s()["last_operation"] or (s()["operation"] or {}).get("done", -1) >= d)
        sent_s = now_s()
        pool.send(signal.SIGTERM)
        assert pool.wait() == EXIT_OK, pool.err
        times.append((now_s() - sent_s) * 1000)
        eventually(lambda pool=pool: not pool.processes())
        assert {note["terms"] for note in pool.notes("left")} == {1}, "exactly one SIGTERM each"
        spawned, left = ({note["pid"] for note in pool.notes(what)} for what in ("spawned", "left"))
        assert left <= spawned
    bound.check("SIGTERM in a rolling restart until all have left", times, 3000)


def is_starting(pool: Standins) -> bool:
    """Return whether the arbiter's image was just replaced and has no signal handlers yet."""
    text = Path(f"/proc/{pool.pid}/status").read_text()
    lines = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    term = 1 << (signal.SIGTERM - 1)
    return bool(int(lines["SigBlk"], 16) & term) and not int(lines["SigCgt"], 16) & term


@pytest.mark.long
def test_28_hup_storm(standins: Make, watch: Watch, bound: Bounds) -> None:
    pool = standins(workers=3)
    arbiter, before = pool.pid, pool.pids()
    began_s = now_s()
    for _ in range(40):
        pool.send(signal.SIGHUP)
        time.sleep(0.02)  # so that they do not become one, and meet every phase of a restart
    eventually(lambda: not set(pool.pids().values()) & set(before.values()) and pool.wait_ready(), 30, 0.05)
    eventually(lambda: settled(pool), 20, 0.05)
    bound.check("40 SIGHUP until all is as it was", (now_s() - began_s) * 1000, 20_000)
    restarts = len(pool.events("restarted"))
    bound.check("restarts for 40 SIGHUP", restarts, 3, "")
    assert restarts >= 1 and not pool.events("restart failed")
    assert pool.status()["pid"] == arbiter
    assert len(pool.notes("spawned")) == 3 + 3 * restarts, "each restart replaced each worker once"
    assert {note["terms"] for note in pool.notes("left")} == {1}


def settled(pool: Standins) -> bool:
    """Return whether no restart is in progress and none follows."""
    first = len(pool.events("restarted"))
    until_s = now_s() + 0.5
    while now_s() < until_s:
        if pool.status()["operation"] is not None:
            return False
        time.sleep(0.02)
    return len(pool.events("restarted")) == first


def test_29_sigchld_coalesced(standins: Make, bound: Bounds) -> None:
    pool = standins(workers=32)
    before = pool.pids()
    pool.send(signal.SIGSTOP)  # so that it finds all of them dead at once, behind one SIGCHLD
    eventually(lambda: psutil.Process(pool.pid).status() == psutil.STATUS_STOPPED)
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(zombies(pool.pid)) == 32)
    with bound.within("32 dead at once until all are READY again", 2000):
        pool.send(signal.SIGCONT)
        pool.wait_ready()
    assert not zombies(pool.pid)
    workers = pool.status()["workers"]
    assert [worker["restarts"] for worker in workers] == [1] * 32
    assert all(worker["last_exit"]["signal"] == signal.SIGKILL for worker in workers)
    assert len(pool.events("worker exited")) == 32 and not set(before.values()) & set(pool.pids().values())


@pytest.mark.parametrize("wedged", [1, 6])
def test_30_drain_timeout_wedged_worker(standins: Make, bound: Bounds, wedged: int) -> None:
    orders = {str(slot): "stubborn" for slot in range(wedged)}
    pool = standins(workers=8, orders=orders, pool="drain_s = 1.0")
    began_s = now_s()
    assert pool.stop() == EXIT_DRAIN
    took_ms = (now_s() - began_s) * 1000
    bound.check(f"SIGTERM until it has left, {wedged} of 8 wedged, limit 1 s", took_ms, 2000)
    assert took_ms > 900
    reasons = [line["reason"] for line in pool.events("worker exited")]
    assert sorted(reasons) == ["drain"] * wedged + ["drained"] * (8 - wedged)
    assert {line.get("signal") for line in pool.events("worker exited") if line["reason"] == "drain"} == {"SIGKILL"}


def test_30_drain_timeout_wedged_worker_loops(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # Real workers whose blocked loops do not handle the signal.
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="workers", concurrency=1, batch_size=1)
    async def handle(message: Message) -> None:
        record("blocks")
        time.sleep(3600)
""",
        redis_url=redis_server.url,
        workers=3,
        config="[pool]\ndrain_s = 1.0\nbeat_limit_s = 60\n",
    )
    redis = redis_server.sync()
    for n in range(20):
        redis.xadd("events", {"n": n})
    eventually(lambda: seen(pool)["blocks"] == 3)
    with bound.within("SIGTERM until it has left, 3 of 3 loops blocked, limit 1 s", 2000):
        pool.send(signal.SIGTERM)
        assert pool.wait() == EXIT_DRAIN
    assert [line["reason"] for line in pool.events("worker exited")] == ["drain"] * 3
    [group] = redis.xinfo_groups("events")
    assert group["pending"] >= 3 and group["entries-read"] == group["pending"], "no unfinished message is acked"
