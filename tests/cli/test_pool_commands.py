"""`status`, `scale`, `restart`, `stop`, `pause` and `resume` on a running pool; `api` by itself."""

import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.run import data, run
from tests.support.documents import fields_of_status
from tests.support.waiting import eventually

STREAM = "events:x"
HANDLERS = """\
from supervisor import handler

@handler("events:x", group="g")
async def handle(fields: dict[str, str]) -> None:
    if "fail" in fields:
        raise ValueError("as requested")
"""


def status(pool) -> tuple[int, dict[str, Any]]:
    done = run("status", "--json", cwd=pool.folder, redis_url=pool.url)
    return done.returncode, data(done)


@pytest.fixture
def pool(start_pool, redis_server):
    started = start_pool(HANDLERS, redis_url=redis_server.url)
    started.url = redis_server.url
    return started


def test_status_begins_as_scripts_expect(pool) -> None:
    code, found = status(pool)
    assert code == 0
    assert list(found)[:6] == ["state", "pid", "uptime_s", "redis", "workers", "groups"]
    assert (found["state"], found["pid"]) == ("healthy", pool.pid)
    assert found["redis"]["durability"] == "none"
    assert re.fullmatch(r"(Redis|Valkey) \d+\.\d+\.\d+", found["redis"]["version"])
    assert [(worker["slot"], worker["state"]) for worker in found["workers"]] == [(0, "READY"), (1, "READY")]
    for worker in found["workers"]:
        assert psutil.Process(worker["pid"]).ppid() == pool.pid
        assert worker["rss_bytes"] > worker["pss_bytes"] > 1024 * 1024
        assert 0 < worker["boot_ms"] < 30_000
    (group,) = found["groups"]
    assert (group["stream"], group["group"], group["consumers"]) == (STREAM, "g", 2)


def test_status_for_people(pool) -> None:
    done = run("status", cwd=pool.folder, redis_url=pool.url)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"healthy   pid {pool.pid}, up ")
    assert any(line.split()[:2] == [STREAM, "g"] for line in lines)
    assert sum("READY" in line and line.count("MiB") == 2 for line in lines) == 2


def test_status_shows_a_crash(pool) -> None:
    victim = status(pool)[1]["workers"][0]["pid"]
    os.kill(victim, signal.SIGKILL)

    def replaced() -> dict[str, Any] | None:
        worker = status(pool)[1]["workers"][0]
        return worker if worker["pid"] != victim and worker["state"] == "READY" else None

    worker = eventually(replaced)
    assert worker["restarts"] == 1
    assert worker["last_exit"]["signal"] in ("SIGKILL", signal.SIGKILL)
    row = next(
        line
        for line in run("status", cwd=pool.folder, redis_url=pool.url).stdout.splitlines()
        if str(worker["pid"]) in line
    )
    assert re.search(r" after [\d.]+ s$", row)


def test_status_with_redis_gone_is_degraded(pool, redis_server) -> None:
    redis_server.kill()
    code, found = status(pool)
    assert (code, found["state"]) == (6, "degraded")
    assert found["redis"]["version"] is None and found["redis"]["error"]
    assert len(found["workers"]) == 2 and found["groups"] == []


def test_status_without_a_pool_shows_the_groups_of_the_last_one(pool, redis_server) -> None:
    assert run("stop", cwd=pool.folder, redis_url=pool.url).returncode == 0
    (pool.folder / "handlers.py").write_text("raise SystemExit('status imports no handlers')")
    with redis_server.sync() as client:
        client.xadd(STREAM, {"a": "1"})
    done = run("status", "--json", cwd=pool.folder, redis_url=pool.url)
    assert done.returncode == 8
    found = data(done)
    assert (found["state"], found["pid"], found["workers"]) == ("down", None, [])
    assert [(group["stream"], group["group"], group["lag"]) for group in found["groups"]] == [(STREAM, "g", 1)]


def test_status_has_the_documented_fields_with_and_without_a_pool(pool) -> None:
    _, running = status(pool)
    assert run("stop", cwd=pool.folder, redis_url=pool.url).returncode == 0
    code, down = status(pool)
    assert code == 8
    assert set(running) == set(down) == fields_of_status()
    known = {"state", "reason", "redis", "groups"}
    assert {key: value for key, value in down.items() if value not in (None, []) and key not in known} == {}


def test_status_where_no_pool_has_run_names_the_command_that_shows_the_groups(tmp_path: Path, redis_server) -> None:
    (tmp_path / "handlers.py").write_text("raise SystemExit('status imports no handlers')")
    done = run("status", cwd=tmp_path, redis_url=redis_server.url)
    assert done.returncode == 8 and done.stdout.startswith("down") and STREAM not in done.stdout
    assert "no pool has run here yet; `supervisor streams` loads the handlers" in done.stderr


def test_scale_waits_for_the_workers(pool) -> None:
    for number in (4, 1):
        done = run("scale", str(number), "--wait", cwd=pool.folder, redis_url=pool.url)
        assert done.returncode == 0, done.stderr
        assert "done in" in done.stderr
        found = status(pool)[1]
        assert [(worker["slot"], worker["state"]) for worker in found["workers"]] == [
            (n, "READY") for n in range(number)
        ]
    assert run("scale", "257", cwd=pool.folder, redis_url=pool.url).returncode == 2


def test_restart_waits_for_new_workers(pool) -> None:
    before = {worker["pid"] for worker in status(pool)[1]["workers"]}
    done = run("restart", "--wait", cwd=pool.folder, redis_url=pool.url)
    assert done.returncode == 0, done.stderr
    after = status(pool)[1]
    assert before.isdisjoint({worker["pid"] for worker in after["workers"]})
    assert (after["pid"], after["state"]) == (pool.pid, "healthy")


def test_restart_with_broken_code_fails_and_changes_nothing(pool) -> None:
    before = status(pool)[1]["workers"]
    (pool.folder / "handlers.py").write_text("1 / 0\n")
    done = run("restart", "--wait", cwd=pool.folder, redis_url=pool.url)
    assert done.returncode == 1
    place = f"{pool.folder}/handlers.py:1: ZeroDivisionError: division by zero"
    assert "error: not restarted: nothing was changed" in done.stderr and place in done.stderr
    assert place in status(pool)[1]["last_operation"]["error"]
    for words in (["status"], ["top", "--count", "1"]):
        text = run(*words, cwd=pool.folder, redis_url=pool.url).stdout
        assert re.search(r"(?m)^restart   failed [\w. ]+ ago: nothing was changed", text), text
    [traceback] = [line["exception"] for line in pool.events("restart failed")]
    assert traceback.count("File ") == 1, "frames of the project only"
    assert [worker["pid"] for worker in status(pool)[1]["workers"]] == [worker["pid"] for worker in before]


def test_pause_and_resume(pool, redis_server) -> None:
    def lag() -> int:
        (group,) = status(pool)[1]["groups"]
        found: int = group["lag"] + group["pending"]
        return found

    assert run("pause", cwd=pool.folder, redis_url=pool.url).returncode == 0
    assert status(pool)[1]["paused"] is True
    assert run("resume", cwd=pool.folder, redis_url=pool.url).returncode == 0
    assert status(pool)[1]["paused"] is False
    with redis_server.sync() as client:
        client.xadd(STREAM, {"a": "1"})
    eventually(lambda: lag() == 0)


def test_stop_returns_when_the_process_is_gone(pool) -> None:
    pid = pool.pid
    done = run("stop", cwd=pool.folder, redis_url=pool.url)
    assert (done.returncode, done.stderr) == (0, "stopped\n")
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert pool.wait() == 0
    assert run("stop", cwd=pool.folder, redis_url=pool.url).returncode == 8


MISTAKES = [
    ("state_dir = 'here'\n[pool]\nworker = 3\n", "pool.worker: unknown key, did you mean 'workers'?"),
    ("state_dir = 'here'\nhandlers = 1\n[pool]\nworkers = 'three'\n[api]\nbind = 'nowhere'\n", "api.bind = "),
    ("state_dir = 'here'\n[pool\nworkers = 3\n", "not valid TOML"),
]


@pytest.mark.parametrize(("config", "words"), MISTAKES, ids=["unknown", "values", "syntax"])
def test_a_mistake_in_the_configuration_keeps_nobody_from_a_pool_that_runs(
    start_pool, redis_server, config: str, words: str
) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, config="state_dir = 'here'")
    pool.config.write_text(config)

    def asked(*command: str) -> Any:
        done = run(*command, cwd=pool.folder)
        assert done.returncode == 0, done.stderr
        assert f"warning: {pool.config}:" in done.stderr and words in done.stderr
        assert done.stderr.count(words) == 1 and "error:" not in done.stderr
        return done

    found = data(asked("status", "--json"))
    assert (found["state"], found["pid"], found["redis"]["url"]) == ("healthy", pool.pid, redis_server.url)
    asked("top", "--count", "1")
    asked("scale", "1", "--wait")
    asked("pause")
    asked("resume")
    refused = run("restart", "--wait", cwd=pool.folder)
    assert refused.returncode == 1 and words in refused.stderr.partition("nothing was changed")[2]
    asked("stop")
    assert pool.wait() == 0


def test_api_refuses_an_open_address_without_a_token(tmp_path: Path) -> None:
    for bind in ("0.0.0.0:0", "0.0.0.0:8000", "[::]:8000", "example.org:8000"):
        done = run("api", "--bind", bind, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), bind
        assert bind in done.stderr


def test_api_names_a_taken_address(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("api", "--bind", bind, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {bind} is in use; use --bind 127.0.0.1:" in done.stderr
