"""The arbiter on real processes with stand-in children: start, crash, hang, stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import psutil
import pytest

from supervisor.errors import EXIT_DRAIN, EXIT_HANDLERS, EXIT_OK, EXIT_REDIS, EXIT_RUNNING
from tests.support.standins import Standins, is_gone, now_s
from tests.support.waiting import eventually

Make = Callable[..., Standins]


def test_a_pool_starts_shows_itself_and_leaves_nothing(standins: Make) -> None:
    pool = standins(workers=3, api=True).start()
    status = pool.status()
    assert [worker["state"] for worker in status["workers"]] == ["READY"] * 3
    assert [service["name"] for service in status["services"]] == ["keeper", "api"]
    assert status["pid"] == pool.pid
    assert status["redis"]["version"] == "Redis 0"
    for worker in status["workers"]:
        assert worker["boot_ms"] > 0
        assert worker["last_exit"] is None and worker["restarts"] == 0 and worker["incarnation"] == 1
    assert pool.events("started")[0]["ready"] == 3
    assert pool.place.control.stat().st_mode & 0o777 == 0o600
    assert pool.stop() == EXIT_OK
    assert not pool.place.control.exists()
    assert [note["terms"] for note in pool.notes("left")] == [1, 1, 1]


def test_a_killed_worker_is_replaced_at_once(standins: Make) -> None:
    pool = standins().start()
    before = pool.pids()
    killed_s = now_s()
    os.kill(before[1], signal.SIGKILL)
    eventually(lambda: pool.notes("spawned")[2:], 5, 0.001)
    took_ms = (pool.notes("spawned")[2]["at_s"] - killed_s) * 1000
    assert took_ms < 100
    pool.wait_ready()
    worker = pool.worker(1)
    assert worker["pid"] != before[1] and worker["incarnation"] == 2 and worker["restarts"] == 1
    assert worker["last_exit"]["signal"] == signal.SIGKILL and worker["last_exit"]["reason"] == "signal"
    assert pool.pids()[0] == before[0]
    line = pool.events("worker left")[0]
    assert line["pid"] == before[1] and line["signal"] == "SIGKILL" and line["next_start_s"] == 0


def test_what_was_in_hand_is_logged_and_left_for_the_successor(standins: Make) -> None:
    pool = standins(workers=1, orders={"*": "row"}).start()
    os.kill(pool.pids()[0], signal.SIGKILL)
    eventually(lambda: pool.events("worker left"))
    assert pool.events("worker left")[0]["in_hand"] == ["1234-5"]


def test_all_killed_again_and_again_leaves_no_zombie_and_no_descriptor(standins: Make) -> None:
    pool = standins(workers=4).start()
    before = pool.fds()
    for _ in range(3):  # 12 crashes: as many as the breaker lets pass
        pids = pool.pids()
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        eventually(lambda pids=pids: all(map(is_gone, pids.values())))
        pool.wait_ready()
    assert pool.status()["workers"][0]["restarts"] == 3
    eventually(lambda: pool.fds() <= before, 5)
    assert pool.zombies() == []


@pytest.mark.parametrize(("behaviour", "reason"), [("hang", "hung"), ("overdue", "deadline"), ("boot_hang", "boot")])
def test_a_stuck_worker_shows_its_stack_and_is_replaced(standins: Make, behaviour: str, reason: str) -> None:
    pool = standins(workers=2, orders={"1": behaviour}, pool="beat_limit_s = 0.5\nboot_limit_s = 1.0").start(
        ready=False
    )
    eventually(lambda: pool.worker(1)["last_exit"], 10)
    left = pool.worker(1)["last_exit"]
    assert left["reason"] == reason and left["signal"] == signal.SIGKILL
    assert left["uptime_s"] < 3
    assert "Current thread" in pool.err and "standin_main.py" in pool.err
    pool.wait_ready()
    assert pool.worker(0)["restarts"] == 0


def test_a_stopped_worker_is_replaced(standins: Make) -> None:
    pool = standins(pool="beat_limit_s = 0.5").start()
    pid = pool.pids()[0]
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: is_gone(pid), 5)
    pool.wait_ready()
    assert pool.worker(0)["last_exit"]["reason"] == "hung"


def test_a_frozen_and_thawed_machine_kills_nobody(standins: Make) -> None:
    pool = standins(workers=3, orders={"0": "long"}, pool="beat_limit_s = 0.8").start()
    before = pool.pids()
    processes = [pool.pid, *before.values()]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    eventually(lambda: all(psutil.Process(p).status() == psutil.STATUS_STOPPED for p in processes))
    thaw_s = now_s() + 2.5
    eventually(lambda: now_s() >= thaw_s)
    os.kill(pool.pid, signal.SIGCONT)
    eventually(lambda: pool.events("the arbiter itself was late; deadlines are put off"), 5)
    for pid in processes[1:]:
        os.kill(pid, signal.SIGCONT)
    pool.wait_ready()
    assert pool.pids() == before
    # Its deadline ran on: 2 s from the start, and what the freeze took.
    eventually(lambda: pool.worker(0)["last_exit"], 6)
    assert pool.worker(0)["last_exit"]["reason"] == "deadline"
    assert pool.worker(0)["last_exit"]["uptime_s"] > 4


def test_leaving_unasked_with_code_0_is_a_crash(standins: Make) -> None:
    pool = standins(workers=1, orders={"*": "exit0"}).start(ready=False)
    eventually(lambda: pool.worker(0)["incarnation"] == 2)
    assert pool.worker(0)["last_exit"]["reason"] == "exit" and pool.worker(0)["last_exit"]["code"] == 0


def test_a_recycled_worker_is_replaced_without_penalty(standins: Make) -> None:
    pool = standins(workers=1, orders={"*": "recycle"}).start()
    eventually(lambda: pool.worker(0)["incarnation"] == 4)
    spawned = [note["at_s"] for note in pool.notes("spawned")]
    assert spawned[-1] - spawned[0] < 1
    assert pool.worker(0)["last_exit"]["reason"] == "recycled"


def test_a_crash_loop_opens_the_breaker_and_burns_nothing(standins: Make) -> None:
    pool = standins(workers=4, orders={"*": "crash_soon"}).start(ready=False)
    eventually(lambda: pool.status()["breaker_open"] and not pool.pids(), 20)
    assert pool.status()["state"] in ("down", "degraded")
    spawned = len(pool.notes("spawned"))
    # max(10, 3 × 4) crashes are allowed, one more opens it; the others may have been under way.
    assert 13 <= spawned <= 13 + 4
    used_s = sum(psutil.Process(pool.pid).cpu_times()[:2])
    pool.order({})  # the cause is mended: the canary stays up
    canary_s = now_s()
    eventually(lambda: any(w["state"] == "READY" for w in pool.status()["workers"]), 10)
    assert now_s() - canary_s < 7
    assert len(pool.notes("spawned")) == spawned + 1
    assert sum(psutil.Process(pool.pid).cpu_times()[:2]) - used_s < 1.5  # the test's own questions, mostly
    assert pool.status()["state"] == "degraded"
    assert pool.stop() == EXIT_OK


def test_a_configuration_error_at_first_ends_the_pool_later_only_the_slot(standins: Make) -> None:
    pool = standins(orders={"*": "config"}).start(ready=False)
    assert pool.wait() == EXIT_HANDLERS
    pool = standins(orders={"0": "config_later"}).start()
    os.kill(pool.pids()[0], signal.SIGKILL)
    eventually(lambda: pool.worker(0)["state"] == "FAILED")
    assert pool.worker(1)["state"] == "READY" and pool.status()["state"] == "degraded"
    assert pool.stop() == EXIT_OK


def test_grandchildren_go_with_their_worker(standins: Make) -> None:
    pool = standins(workers=1, orders={"*": "grandchild"}).start()
    grandchild = eventually(lambda: pool.notes("grandchild"))[0]["grandchild"]
    assert not is_gone(grandchild)
    os.kill(pool.pids()[0], signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(grandchild), 5)
    pool.wait_ready()
    assert pool.zombies() == []
    second = eventually(lambda: pool.notes("grandchild")[1:])[0]["grandchild"]
    assert pool.stop() == EXIT_OK
    assert not psutil.pid_exists(second)


def test_children_die_with_a_killed_arbiter_and_a_new_one_starts_at_once(standins: Make) -> None:
    pool = standins(workers=3, api=True).start()
    pids = [*pool.pids().values(), *(service["pid"] for service in pool.status()["services"])]
    assert len(pids) == 5
    killed_s = now_s()
    pool.send(signal.SIGKILL)
    eventually(lambda: all(map(is_gone, pids)), 5, 0.001)
    assert now_s() - killed_s < 0.5
    assert pool.wait() == -signal.SIGKILL
    pool.start()
    assert not set(pids) & set(pool.pids().values())


def test_a_second_arbiter_is_refused_and_names_the_first(standins: Make) -> None:
    pool = standins().start()
    other = Standins(pool.folder)
    other.start(ready=False)
    assert other.wait() == EXIT_RUNNING
    assert f"pid {pool.pid}" in pool.err
    assert pool.wait_ready()["pid"] == pool.pid


def test_what_does_not_drain_is_killed_at_the_deadline(standins: Make) -> None:
    pool = standins(workers=4, orders={"0": "stubborn", "2": "stubborn"}, pool="drain_s = 1.0").start()
    began_s = now_s()
    assert pool.stop() == EXIT_DRAIN
    assert 0.9 < now_s() - began_s < 2.0
    assert sorted(line["reason"] for line in pool.events("worker left")) == ["drain", "drain", "drained", "drained"]


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGQUIT])
def test_a_second_signal_or_quit_ends_at_once(standins: Make, first: signal.Signals) -> None:
    pool = standins(workers=2, orders={"*": "stubborn"}, pool="drain_s = 60.0").start()
    pool.send(first)
    if first == signal.SIGTERM:
        eventually(lambda: pool.status()["state"] == "draining")
        pool.send(signal.SIGTERM)
    began_s = now_s()
    assert pool.wait() == EXIT_DRAIN
    assert now_s() - began_s < 2
    assert not pool.processes()


def test_ctrl_c_in_a_terminal_is_one_drain(standins: Make) -> None:
    pool = standins(workers=3).start()
    os.killpg(pool.pid, signal.SIGINT)
    for pid in pool.pids().values():  # and even if it reached the workers
        os.kill(pid, signal.SIGINT)
    assert pool.wait() == EXIT_OK
    assert [note["terms"] for note in pool.notes("left")] == [1, 1, 1]


def test_a_signal_to_a_worker_is_not_the_arbiters(standins: Make) -> None:
    pool = standins(workers=2).start()
    pid = pool.pids()[0]
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: pool.worker(0)["restarts"] == 1)
    pool.wait_ready()
    assert not pool.events("draining")


def test_a_burst_ends_by_itself(standins: Make) -> None:
    pool = standins(workers=3, orders={"*": "exit0"}, args=("--burst",)).start(ready=False)
    assert pool.wait() == EXIT_OK
    assert len(pool.notes("spawned")) == 3
    assert not pool.processes()


def test_redis_that_does_not_answer_ends_the_start(standins: Make) -> None:
    pool = standins(app='boot = "refused"').start(ready=False)
    assert pool.wait() == EXIT_REDIS
    assert "Redis at redis://nowhere does not answer" in pool.err
    assert not pool.notes("spawned")


def test_a_signal_during_the_boot_check_ends_it(standins: Make) -> None:
    pool = standins(app='boot = "silent"').start(ready=False)
    eventually(lambda: pool.status()["state"] == "starting")
    pool.send(signal.SIGTERM)
    assert pool.wait(5) == EXIT_OK
    assert not pool.processes()


@pytest.mark.parametrize(("trick", "word"), [("thread", "stranger"), ("socket", "descriptor")])
def test_what_a_fork_would_break_is_refused(standins: Make, trick: str, word: str) -> None:
    pool = standins(app=f"{trick} = true").start(ready=False)
    assert pool.wait() == EXIT_HANDLERS
    assert word in pool.err
    assert not pool.notes("spawned")
