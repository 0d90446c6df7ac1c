"""The arbiter on real processes with stand-in children: start, crash, hang, stop."""

import os
import signal
from collections.abc import Callable

import psutil
import pytest

from supervisor.errors import EXIT_DRAIN, EXIT_HANDLERS, EXIT_OK, EXIT_REDIS, EXIT_RUNNING
from tests.support.standins import Standins, is_gone
from tests.support.waiting import eventually

Make = Callable[..., Standins]


def test_a_pool_starts_reports_and_leaves_nothing_behind(standins: Make) -> None:
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
    assert pool.paths.control.stat().st_mode & 0o777 == 0o600
    assert pool.stop() == EXIT_OK
    assert not pool.paths.control.exists()
    assert [note["terms"] for note in pool.notes("left")] == [1, 1, 1]


def test_the_last_started_message_is_logged_and_kept_for_the_successor(standins: Make) -> None:
    pool = standins(workers=1, orders={"*": "started_message"}).start()
    os.kill(pool.pids()[0], signal.SIGKILL)
    eventually(lambda: pool.events("worker exited"))
    assert pool.events("worker exited")[0]["last_started"] == ["1234-5"]


def test_a_recycled_worker_is_replaced_without_penalty(standins: Make) -> None:
    pool = standins(workers=1, orders={"*": "recycle"}).start()
    eventually(lambda: pool.worker(0)["incarnation"] == 4)
    assert {line["next_start_s"] for line in pool.events("worker exited")} == {0}
    assert pool.worker(0)["last_exit"]["reason"] == "recycled"


def test_a_configuration_error_ends_the_pool_at_the_start_and_later_only_the_slot(standins: Make) -> None:
    pool = standins(orders={"*": "config"}).start(ready=False)
    assert pool.wait() == EXIT_HANDLERS
    pool = standins(orders={"0": "config_later"}).start()
    os.kill(pool.pids()[0], signal.SIGKILL)
    eventually(lambda: pool.worker(0)["state"] == "FAILED")
    assert pool.worker(1)["state"] == "READY" and pool.status()["state"] == "degraded"
    assert pool.stop() == EXIT_OK


def test_grandchildren_die_with_their_worker(standins: Make) -> None:
    pool = standins(workers=1, orders={"*": "grandchild"}).start()
    grandchild = eventually(lambda: pool.notes("grandchild"))[0]["grandchild"]
    assert not is_gone(grandchild)
    os.kill(pool.pids()[0], signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(grandchild))
    pool.wait_ready()
    assert pool.zombies() == []
    second = eventually(lambda: pool.notes("grandchild")[1:])[0]["grandchild"]
    assert pool.stop() == EXIT_OK
    eventually(lambda: not psutil.pid_exists(second))


def test_a_second_arbiter_is_refused_and_names_the_first(standins: Make) -> None:
    pool = standins().start()
    other = pool.rival()
    other.start(ready=False)
    assert other.wait() == EXIT_RUNNING
    assert f"pid {pool.pid}" in pool.err
    assert pool.wait_ready()["pid"] == pool.pid


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGQUIT])
def test_a_second_signal_or_quit_stops_at_once(standins: Make, first: signal.Signals) -> None:
    pool = standins(workers=2, orders={"*": "stubborn"}, pool="drain_s = 60.0").start()
    pool.send(first)
    if first == signal.SIGTERM:
        eventually(lambda: pool.status()["state"] == "draining")
        pool.send(signal.SIGTERM)
    assert pool.wait() == EXIT_DRAIN
    assert not pool.processes()


def test_ctrl_c_in_a_terminal_is_one_drain(standins: Make) -> None:
    pool = standins(workers=3).start()
    for pid in pool.pids().values():  # even if it reached the workers
        os.kill(pid, signal.SIGINT)
    os.killpg(pool.pid, signal.SIGINT)
    assert pool.wait() == EXIT_OK
    assert [note["terms"] for note in pool.notes("left")] == [1, 1, 1]


def test_a_signal_to_a_worker_does_not_reach_the_arbiter(standins: Make) -> None:
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


def test_an_unreachable_redis_ends_the_start(standins: Make) -> None:
    pool = standins(app='boot = "refused"').start(ready=False)
    assert pool.wait() == EXIT_REDIS
    assert "Redis at redis://nowhere does not answer" in pool.err
    assert not pool.notes("spawned")


def test_a_signal_during_the_boot_check_ends_it(standins: Make) -> None:
    pool = standins(app='boot = "silent"').start(ready=False)
    eventually(lambda: pool.status()["state"] == "starting")
    pool.send(signal.SIGTERM)
    assert pool.wait() == EXIT_OK
    assert not pool.processes()


@pytest.mark.parametrize(("trick", "word"), [("thread", "stranger"), ("socket", "descriptor")])
def test_threads_and_sockets_before_the_fork_are_refused(standins: Make, trick: str, word: str) -> None:
    pool = standins(app=f"{trick} = true").start(ready=False)
    assert pool.wait() == EXIT_HANDLERS
    assert word in pool.err
    assert not pool.notes("spawned")
