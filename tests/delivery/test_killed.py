"""Cases 0 to 4: no fault at all, and processes of the pool that are killed."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from supervisor.shared_state import SlotField
from tests.delivery.case import HOST, Case
from tests.delivery.checker import rate_per_s
from tests.delivery.setting import IN_HAND_MAX, LONG_WORK_MS
from tests.support.faults import incarnations, ready_again_ms, shared_state_of
from tests.support.pool import Pool
from tests.support.waiting import eventually

StartCase = Callable[..., Case]
STORM_EVERY_S = 0.5


def kill(pid: int) -> int:
    """SIGKILL; when, by the monotonic clock in ns."""
    at_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)
    return at_ns


@pytest.mark.long
def test_00_no_fault(start_case: StartCase) -> None:
    # Without a fault, everything is done once.
    case = start_case()
    case.finish(repeated_max=0, faultless=True)


def test_01_kill9_one(start_case: StartCase) -> None:
    case = start_case(work_ms=LONG_WORK_MS)
    shared = shared_state_of(case.pool.pid)
    case.moment()
    slot = case.busy_slot(in_hand=5)
    was, dead = incarnations(shared, [slot]), case.pool.pids()[slot]
    killed_ns = kill(dead)
    ready_ms = ready_again_ms(shared, was, killed_ns)[slot]
    [left] = eventually(lambda: case.pool.events("worker exited"))
    case.struck("kill -9 of one worker", left["signal"] == "SIGKILL" and left["pid"] == dead, killed_ns)
    # Its successor has its consumer name and so owns at once what it held: 5 to 15 ms, and more
    # where two cases share two cores.
    case.check(
        "kill -9 until its successor is forked", (shared.slot(slot).get(SlotField.SPAWN_NS) - killed_ns) / 1e6, 100
    )
    case.check("kill -9 until its successor is READY", ready_ms, 500)
    case.finish(repeated_max=IN_HAND_MAX, recover_ms=1000)
    assert len(case.recording().pids()[f"{HOST}:{slot}"]) == 2


@pytest.mark.long
def test_02_kill9_all(start_case: StartCase) -> None:
    case = start_case(work_ms=LONG_WORK_MS)
    shared = shared_state_of(case.pool.pid)
    case.moment()
    before = case.pool.pids()
    was = incarnations(shared, list(before))
    killed_ns = min(kill(pid) for pid in before.values())
    ready_again_ms(shared, was, killed_ns)
    eventually(lambda: len(case.pool.events("worker exited")) == len(before))
    case.struck("kill -9 of all workers", not set(before.values()) & set(case.pool.pids().values()), killed_ns)
    case.finish(repeated_max=IN_HAND_MAX * len(before), recover_ms=2000)


@pytest.mark.long
def test_03_kill_storm(start_case: StartCase) -> None:
    case = start_case(work_ms=LONG_WORK_MS)
    kills: list[int] = []
    dead: set[int] = set()
    at_s = 0.5
    while at_s < case.load_s - STORM_EVERY_S:
        case.until(at_s)
        pid = case.rng.choice(eventually(lambda: sorted(set(case.pool.pids().values()) - dead)))
        dead.add(pid)
        kills.append(kill(pid))
        at_s += STORM_EVERY_S
    eventually(lambda: len(case.pool.events("worker exited")) == len(kills))
    case.struck(f"{len(kills)} kills", len(kills) >= 5, kills[-1])
    case.finish(repeated_max=IN_HAND_MAX * len(kills), recover_ms=2000)
    during = rate_per_s(case.recording().ends, kills[0], kills[-1]) / case.setting.rate
    case.figure("share of the load that was not done while the storm went on", 100 * (1 - during), "%")
    assert not case.pool.events("worker start failed")


def start_ms(pool: Pool) -> float:
    """Start it; how long it took until all workers were READY."""
    began_ns = time.monotonic_ns()
    pool.start(ready=False)
    eventually(lambda: {worker["state"] for worker in pool.ask("status")["workers"]} == {"READY"}, interval_s=0.02)
    return (time.monotonic_ns() - began_ns) / 1e6


def test_04_kill9_arbiter(start_case: StartCase) -> None:
    case = start_case(work_ms=LONG_WORK_MS)
    case.moment()
    pool = case.pool
    processes = pool.processes()
    killed_ns = kill(pool.pid)
    assert pool.wait() == -signal.SIGKILL
    eventually(lambda: not pool.processes(), interval_s=0.005, what="no child outlives the arbiter")
    case.check("kill -9 of the arbiter until all its children are gone", (time.monotonic_ns() - killed_ns) / 1e6, 1000)
    stranded = sum(case.pending().values())
    case.struck("kill -9 of the arbiter", len(processes) >= 1 + case.setting.workers)
    case.check("start again until all are READY", start_ms(pool), 2000)
    case.finish(repeated_max=min(stranded, IN_HAND_MAX * case.setting.workers), recover_ms=3000)
