"""Commands to a running arbiter: scaling, rolling restarts, pausing; and misuse of its control socket."""

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from supervisor.control.client import request
from supervisor.control.protocol import encode
from supervisor.control.server import NOT_ALLOWED
from supervisor.errors import EXIT_OK, NotRunningError, SupervisorError
from tests.support.documents import fields_of_status
from tests.support.standins import HANDLERS, Standins
from tests.support.waiting import eventually

Make = Callable[..., Standins]


# Scaling


def test_scaling_down_and_up_again(standins: Make) -> None:
    pool = standins(workers=4).start()
    before = pool.pids()
    assert pool.ask("scale", n=2) == {"workers": 2, "before": 4}
    eventually(lambda: len(pool.status()["workers"]) == 2)
    assert pool.pids() == {0: before[0], 1: before[1]}
    left = pool.notes("left")
    assert sorted(note["slot"] for note in left) == [2, 3]
    assert {note["handover_to"] for note in left} == {1}, "slot 0 takes over waiting messages"
    pool.ask("scale", n=5)
    pool.wait_ready()
    assert sorted(pool.pids()) == [0, 1, 2, 3, 4]
    assert pool.stop() == EXIT_OK
    rescans = {note["slot"]: note["rescans"] for note in pool.notes("left")[2:]}
    assert rescans[0] == rescans[1] == 2, "remaining workers rescan once for each worker that exited"


def test_a_removed_slot_that_crashes_hands_over_through_a_successor(standins: Make) -> None:
    pool = standins(workers=2, orders={"1": "stubborn"}, pool="drain_s = 30.0").start()
    pid = pool.pids()[1]
    pool.order({})
    pool.ask("scale", n=1)
    eventually(lambda: pool.worker(1)["state"] == "DRAINING")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(pool.status()["workers"]) == 1)
    assert [note["slot"] for note in pool.notes("left")] == [1], "a second incarnation exited normally"
    assert len(pool.notes("spawned")) == 3


def test_signals_scale_by_one(standins: Make) -> None:
    pool = standins(workers=1).start()
    pool.send(signal.SIGTTIN)
    eventually(lambda: len(pool.pids()) == 2)
    pool.wait_ready()
    pool.send(signal.SIGTTOU)
    eventually(lambda: list(pool.pids()) == [0])


def test_sigusr1_logs_the_documented_fields(standins: Make) -> None:
    pool = standins(workers=1).start()
    pool.send(signal.SIGUSR1)
    (event,) = eventually(lambda: pool.events("status"))
    of_redis = {"groups", "later", "schedules"}
    fields = set(event) - {"timestamp", "level", "event"}
    assert fields <= fields_of_status() - of_redis
    assert {"state", "degraded_reasons", "pid", "config", "workers", "services"} <= fields


@pytest.mark.parametrize("wrong", [-1, 257, "2", None, True, 1.5])
def test_scaling_to_an_invalid_number_is_refused(standins: Make, wrong: object) -> None:
    pool = standins(workers=1).start()
    with pytest.raises(SupervisorError, match=r"scale|workers"):
        pool.ask("scale", n=wrong)
    assert len(pool.pids()) == 1


def test_pause_and_resume(standins: Make) -> None:
    pool = standins(workers=1).start()
    assert pool.ask("pause") == {"paused": True}
    assert pool.status()["paused"] is True
    assert pool.ask("resume") == {"paused": False}
    assert pool.status()["paused"] is False


def test_stop_command_with_a_timeout(standins: Make) -> None:
    pool = standins(workers=2, orders={"*": "stubborn"}, pool="drain_s = 60.0").start()
    pool.ask("stop", timeout_s=0.5)
    pool.wait(30)
    with pytest.raises(NotRunningError):
        pool.ask("ping")


# Rolling restart


def test_a_restart_reloads_code_and_configuration_in_the_same_process(standins: Make) -> None:
    pool = standins(workers=3, api=True).start()
    arbiter, before, status = pool.pid, pool.pids(), pool.status()
    services = {service["name"]: service["pid"] for service in status["services"]}
    fds = pool.fds()
    (pool.folder / "handlers.py").write_text(HANDLERS.replace('"group"', '"another"'))
    pool.config.write_text(pool.config.read_text().replace("workers = 3", "workers = 4"))
    assert pool.ask("restart") == {"accepted": True}
    eventually(lambda: (pool.status()["last_operation"] or {}).get("kind") == "restart", 20)
    after = pool.wait_ready()
    assert after["last_operation"] | {"age_s": 0} == {"kind": "restart", "ok": True, "error": None, "age_s": 0}
    assert 0 <= after["last_operation"]["age_s"] < after["uptime_s"]
    assert after["pid"] == arbiter and psutil.pid_exists(arbiter)
    assert sorted(pool.pids()) == [0, 1, 2, 3]
    assert not set(before.values()) & set(pool.pids().values())
    assert after["uptime_s"] > status["uptime_s"]
    eventually(lambda: all(s["pid"] not in (None, services[s["name"]]) for s in pool.status()["services"]))
    assert {service["name"]: service["restarts"] for service in pool.status()["services"]} == {"keeper": 1, "api": 1}
    # One at a time: a worker gets its SIGTERM only when the one before is READY again.
    spawned = [n["at_s"] for n in pool.notes("spawned") if n["pid"] not in before.values() and n["slot"] < 3]
    left = sorted(n["at_s"] for n in pool.notes("left"))
    assert left[1] > spawned[0] and left[2] > spawned[1]
    assert {note["terms"] for note in pool.notes("left")} == {1}
    assert pool.zombies() == []
    # The last client's connection may still be open for a moment.
    eventually(lambda: pool.fds() <= fds + 4, what="a pidfd, a stack file and two output pipes for one worker more")
    assert pool.stop() == EXIT_OK


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.toml", "workers = 3\n", "unusable"),
        ("config.toml", '[redis]\nurl = "redis://elsewhere"\n', "redis.url"),
    ],
)
def test_unusable_code_or_configuration_changes_nothing(standins: Make, file: str, text: str, words: str) -> None:
    pool = standins(workers=2).start()
    before = pool.pids()
    (pool.folder / file).write_text(text)
    pool.send(signal.SIGHUP)
    eventually(lambda: pool.events("restart failed"), 20)
    assert words in pool.err
    assert pool.pids() == before and pool.status()["last_operation"]["ok"] is False
    os.kill(before[0], signal.SIGKILL)  # and the pool goes on with what it has
    eventually(lambda: pool.worker(0)["restarts"] == 1)


def test_a_restart_stops_at_the_first_worker_that_does_not_stay_up(standins: Make) -> None:
    pool = standins(workers=3).start()
    before = pool.pids()
    pool.order({"*": "crash"})
    pool.send(signal.SIGHUP)
    eventually(lambda: (pool.status()["last_operation"] or {}).get("ok") is False, 20)
    after = pool.pids()
    assert (after[1], after[2]) == (before[1], before[2])


# The socket


@pytest.mark.long
def test_misbehaving_clients_do_not_disturb_others(standins: Make) -> None:
    pool = standins(workers=1).start()
    before = pool.fds()
    path = str(pool.paths.control)

    def connect() -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        client.connect(path)
        return client

    nonsense = [b"\xff\x00", b"[1]", b"{}", b'{"cmd": "nonsense"}', b'{"cmd":"ping","x":1}', b"[" * 60000]
    for garbage in nonsense:
        with connect() as client, client.makefile() as reader:
            client.sendall(garbage + b"\n")
            answer = json.loads(reader.readline())
            assert answer["ok"] is False and answer["error"]
    with connect() as greedy:
        greedy.sendall(b"x" * 70000)
        with contextlib.suppress(ConnectionResetError):
            assert greedy.recv(1) == b"", "a client that sends an endless line is disconnected"
    with connect() as several, several.makefile() as reader:
        several.sendall(b'{"cmd": "ping"}\n{"cmd": "ping"}\n')
        assert [json.loads(reader.readline())["ok"] for _ in range(2)] == [True, True]
    silent = [connect() for _ in range(8)]
    with connect() as ninth:
        assert ninth.recv(1) == b"", "at most eight clients"
    os.kill(pool_pid := _worker_pid(pool), signal.SIGKILL)
    eventually(lambda: len(pool.notes("spawned")) == 2, 20, what=f"{pool_pid} is replaced whoever is connected")
    for client in silent:  # each has two seconds
        assert client.recv(1) == b""
        client.close()
    assert pool.wait_ready()["workers"][0]["restarts"] == 1
    eventually(lambda: pool.fds() <= before, 20)


def test_a_request_without_an_arbiter_fails(tmp_path: Path) -> None:
    paths = Standins(tmp_path / "none").paths
    with pytest.raises(NotRunningError, match="does not exist"):
        request(paths, "ping")
    paths.control.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(paths.control))
    with pytest.raises(NotRunningError, match="is gone"):
        request(paths, "ping")


def test_a_refusal_that_comes_before_the_request_was_sent_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine, where the arbiter runs first."""

    @contextlib.contextmanager
    def refused(*_: object) -> Iterator[socket.socket]:
        its, own = socket.socketpair()
        with its:
            its.sendall(encode({"ok": False, "error": NOT_ALLOWED}))
        with own:
            yield own

    monkeypatch.setattr("supervisor.control.client._connected", refused)
    with pytest.raises(SupervisorError, match="belongs to another user") as error:
        request(Standins(tmp_path).paths, "ping", patience_s=0.1)
    assert not isinstance(error.value, NotRunningError)


def _worker_pid(pool: Standins) -> int:
    return pool.notes("spawned")[0]["pid"]


def test_a_restart_recovers_a_failed_slot(standins: Make) -> None:
    pool = standins(workers=2, orders={"1": "config_later"}).start()
    os.kill(pool.pids()[1], signal.SIGKILL)
    eventually(lambda: pool.status()["workers"][1]["state"] == "FAILED")
    pool.order({})
    assert pool.ask("restart") == {"accepted": True}
    after = eventually(lambda: status if (status := pool.status())["last_operation"] else None, 20)
    assert after is not None and after["last_operation"]["ok"], after["last_operation"]
    assert {worker["state"] for worker in after["workers"]} == {"READY"}


def test_a_slot_removed_while_it_drains_hands_over(standins: Make) -> None:
    pool = standins(workers=2, orders={"1": "slow_drain"}, pool="recycle_age_s = 0.5\ndrain_s = 20.0").start()
    eventually(lambda: pool.status()["workers"][1]["state"] == "DRAINING", 20)
    pool.ask("scale", n=1)
    eventually(lambda: len(pool.status()["workers"]) == 1, 20)
    last = [note for note in pool.notes("left") if note["slot"] == 1][-1]
    assert last["handover_to"] == 1, "slot 0 takes over"


def test_a_pool_without_workers_can_be_scaled_again(standins: Make) -> None:
    pool = standins(workers=1).start()
    pool.ask("scale", n=0)
    eventually(lambda: not pool.status()["workers"])
    assert pool.ask("restart") == {"accepted": True}
    eventually(lambda: (pool.status()["last_operation"] or {}).get("ok"), 20)
    assert pool.ask("scale", n=2)["workers"] == 2
    eventually(lambda: [worker["state"] for worker in pool.status()["workers"]] == ["READY", "READY"])


def test_a_signal_without_a_name_is_handled_like_any_other(standins: Make) -> None:
    pool = standins(workers=2).start()
    before = pool.pids()
    os.kill(before[0], signal.SIGRTMIN + 6)
    eventually(lambda: pool.pids()[0] not in (before[0], None) and pool.worker(0)["state"] == "READY")
    assert pool.worker(0)["last_exit"]["signal"] == signal.SIGRTMIN + 6
    assert not pool.events("internal error")
