"""The contract for scripts: exit codes of `status` and `stop`, and their messages."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.errors import EXIT_DEGRADED, EXIT_DOWN, EXIT_DRAIN, EXIT_FAILED, EXIT_OK
from supervisor.settings.paths import PoolPaths
from supervisor.shared_state import SlotField
from tests.cli.run import data, run, spawn
from tests.support.faults import shared_state_of
from tests.support.standins import Standins
from tests.support.waiting import eventually

Make = Callable[..., Standins]
LEFT = "stopped, but unfinished messages stay pending and run at the next start\n"


def test_a_supervisor_without_a_ready_worker_is_degraded_and_not_absent(standins: Make) -> None:
    pool = standins(workers=1).start()
    pool.order({"*": "crash"})
    os.kill(pool.pids()[0], signal.SIGKILL)
    eventually(lambda: pool.status()["state"] == "down")
    told = run("status", cwd=pool.folder)
    assert told.returncode == EXIT_DEGRADED
    assert told.stdout.split()[:3] == ["down", "pid", f"{pool.pid},"]
    assert "supervisor start" not in told.stderr
    found = run("status", "--json", cwd=pool.folder)
    assert (found.returncode, data(found)["pid"]) == (EXIT_DEGRADED, pool.pid)


def test_only_where_no_supervisor_runs_status_says_how_to_start_one(tmp_path: Path) -> None:
    told = run("status", cwd=tmp_path, redis_url="redis://127.0.0.1:1")
    assert told.returncode == EXIT_DOWN
    assert "`supervisor start` starts this folder's pool" in told.stderr


# stop


def test_stop_tells_that_the_drain_left_work(standins: Make) -> None:
    pool = standins(workers=2, orders={"0": "stubborn"}, pool="drain_s = 0.5").start()
    done = run("stop", cwd=pool.folder)
    assert done.returncode == EXIT_DRAIN
    assert done.stderr == LEFT
    assert pool.wait() == EXIT_DRAIN


def test_stop_tells_that_all_was_done(standins: Make) -> None:
    pool = standins(workers=2).start()
    done = run("stop", cwd=pool.folder)
    assert (done.returncode, done.stderr) == (EXIT_OK, "stopped\n")
    assert pool.wait() == EXIT_OK


def test_stop_of_a_supervisor_that_is_killed_meanwhile_does_not_say_that_all_is_well(standins: Make) -> None:
    pool = standins(workers=1, orders={"*": "stubborn"}, pool="drain_s = 60").start()
    # What an earlier one left behind, with the same number: in a container they all have it.
    word = {"pid": pool.pid, "exit_code": 0, "reason": "drained", "at_s": time.time() - 60}
    pool.paths.exit_report.write_text(json.dumps(word))
    with spawn("stop", cwd=pool.folder) as stopping:
        eventually(lambda: pool.status()["state"] == "draining")
        pool.send(signal.SIGKILL)
        _, told = stopping.communicate(timeout=20)
    assert stopping.returncode == EXIT_FAILED
    assert b"is gone without an exit report" in told
    assert pool.wait() == -signal.SIGKILL


WORK = """
import asyncio, pathlib
from supervisor import handler

@handler("events", group="g")
async def handle(fields: dict[str, str]) -> None:
    pathlib.Path("begun").touch()
    while not pathlib.Path("go").exists():
        await asyncio.sleep(0.01)
    pathlib.Path("ended").touch()
"""


def test_stop_without_time_leaves_no_work_where_none_is_in_hand(start_pool, redis_server) -> None:
    pool = start_pool(WORK, redis_url=redis_server.url)
    done = run("stop", "--timeout", "0", cwd=pool.folder)
    assert (done.returncode, done.stderr) == (EXIT_OK, "stopped\n")
    assert pool.wait() == EXIT_OK


def test_a_quick_stop_leaves_no_work_when_the_last_message_has_just_ended(start_pool, redis_server) -> None:
    pool = start_pool(WORK, redis_url=redis_server.url, workers=1)
    fields = shared_state_of(pool.pid).slot(0)
    with redis_server.sync() as redis:
        redis.xadd("events", {"n": "1"})
    eventually(lambda: fields.get(SlotField.IN_FLIGHT), interval_s=0.001, what="a beat has noted it")
    (pool.folder / "go").touch()
    eventually(lambda: fields.get(SlotField.DONE) and not fields.get(SlotField.SETTLING), interval_s=0.001)
    pool.send(signal.SIGQUIT)
    assert pool.wait() == EXIT_OK


@pytest.mark.parametrize("how", ["stop", "quick"])
def test_stop_without_time_tells_of_a_message_that_has_just_begun(start_pool, redis_server, how: str) -> None:
    pool = start_pool(WORK, redis_url=redis_server.url)
    with redis_server.sync() as redis:
        redis.xadd("events", {"n": "1"})
    eventually((pool.folder / "begun").exists, interval_s=0.001)
    if how == "quick":
        pool.send(signal.SIGQUIT)
    else:
        assert run("stop", "--timeout", "0", cwd=pool.folder).returncode == EXIT_DRAIN
    assert pool.wait() == EXIT_DRAIN


@pytest.mark.parametrize("end", ["time.sleep(3600)", "os._exit(3)"], ids=["hangs", "crashes"])
def test_stop_tells_of_a_message_whose_worker_ends_before_the_deadline(start_pool, redis_server, end: str) -> None:
    ends = WORK.replace("asyncio, pathlib", "asyncio, os, pathlib, time").replace('pathlib.Path("ended").touch()', end)
    pool = start_pool(ends, redis_url=redis_server.url, config="[pool]\nbeat_limit_s = 1.0")
    with redis_server.sync() as redis:
        redis.xadd("events", {"n": "1"})
    eventually((pool.folder / "begun").exists)
    with spawn("stop", "--timeout", "60", cwd=pool.folder) as stopping:
        eventually(lambda: pool.events("draining"))
        (pool.folder / "go").touch()
        _, told = stopping.communicate(timeout=60)
    assert (stopping.returncode, told.decode()) == (EXIT_DRAIN, LEFT)
    assert pool.wait() == EXIT_DRAIN


def test_stop_tells_of_messages_whose_acks_redis_has_not_confirmed(start_pool, redis_server) -> None:
    pool = start_pool(WORK, redis_url=redis_server.url)
    with redis_server.sync() as redis:
        redis.xadd("events", {"n": "1"})
    eventually((pool.folder / "begun").exists)
    redis_server.pause()
    (pool.folder / "go").touch()
    eventually((pool.folder / "ended").exists)
    done = run("stop", "--timeout", "2", cwd=pool.folder)
    redis_server.resume()
    assert (done.returncode, done.stderr) == (EXIT_DRAIN, LEFT)
    assert pool.wait() == EXIT_DRAIN


@pytest.mark.parametrize("words", [["stop"], ["stop", "--timeout", "0"]], ids=" ".join)
def test_stop_tells_of_messages_whose_acks_redis_refuses(start_pool, redis_server, words: list[str]) -> None:
    pool = start_pool(WORK, redis_url=redis_server.url, workers=1)
    with redis_server.sync() as redis:
        redis.xadd("events", {"n": "1"})
        eventually((pool.folder / "begun").exists)
        redis.execute_command("ACL", "SETUSER", "default", "-xack")
        try:
            (pool.folder / "go").touch()
            eventually(lambda: pool.events("can't settle"))
            done = run(*words, cwd=pool.folder)
        finally:
            redis.execute_command("ACL", "SETUSER", "default", "+xack")
    assert (done.returncode, done.stderr) == (EXIT_DRAIN, LEFT)
    assert pool.wait() == EXIT_DRAIN


def test_stop_leaves_no_work_when_redis_takes_the_acks_after_all(start_pool, redis_server) -> None:
    pool = start_pool(WORK, redis_url=redis_server.url, workers=1)
    fields = shared_state_of(pool.pid).slot(0)
    with redis_server.sync() as redis:
        redis.execute_command("ACL", "SETUSER", "default", "-xack")
        try:
            (pool.folder / "go").touch()
            redis.xadd("events", {"n": "1"})
            eventually(lambda: fields.get(SlotField.REFUSED) == 1)
        finally:
            redis.execute_command("ACL", "SETUSER", "default", "+xack")
        eventually(lambda: fields.get(SlotField.REFUSED) == 0)
    assert run("stop", "--timeout", "0", cwd=pool.folder).returncode == EXIT_OK


class Unseen(threading.Thread):
    """Answers as an arbiter whose process can't be seen from here, as from outside of its container."""

    def __init__(self, paths: PoolPaths) -> None:
        super().__init__(daemon=True)
        self.paths, self.asked = paths, list[str]()
        gone = subprocess.Popen(["true"])
        gone.wait()
        self.pid = gone.pid
        paths.control.parent.mkdir(parents=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(paths.control))
        self.listener.listen()

    def run(self) -> None:
        with self.listener:
            while "stop" not in self.asked:
                connection, _ = self.listener.accept()
                # A command of another test may have given up waiting.
                with connection, connection.makefile() as reader, contextlib.suppress(OSError, ValueError):
                    self.asked.append(json.loads(reader.readline())["cmd"])
                    connection.sendall(json.dumps({"ok": True, "data": {"pid": self.pid}}).encode() + b"\n")
            word = {"pid": self.pid, "exit_code": EXIT_DRAIN, "reason": "", "at_s": time.time()}
            self.paths.exit_report.write_text(json.dumps(word))


def test_stop_of_a_supervisor_whose_process_is_not_to_be_seen(tmp_path: Path) -> None:
    pool = Standins(tmp_path / "none")
    unseen = Unseen(pool.paths)
    unseen.start()
    done = run("stop", cwd=pool.folder)
    unseen.join(5)
    # Commands of other tests look for running pools meanwhile, and ask each for its status.
    assert list(dict.fromkeys(unseen.asked)) == ["status", "stop"]
    assert (done.returncode, "Traceback" in done.stderr) == (EXIT_DRAIN, False)
