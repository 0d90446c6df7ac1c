"""`status` and `top` as people see them: on terminals of all widths, and with everything that can be wrong."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from supervisor.cli.tables import fitting
from supervisor.text import duration_text, exit_text
from tests.cli.run import run, run_on_terminal
from tests.support.waiting import eventually

STREAM = "events:user_created"
HANDLERS = f"""\
from supervisor import Reject, handler

@handler("{STREAM}", group="email_workers")
async def handle(fields: dict[str, str]) -> None:
    if "reject" in fields:
        raise Reject("as requested")
"""


@pytest.fixture
def pool(start_pool, redis_server):
    started = start_pool(HANDLERS, redis_url=redis_server.url, api=True)
    started.url = redis_server.url
    return started


def test_a_narrow_terminal_lacks_columns_and_never_a_digit(pool) -> None:
    pids = {worker["pid"] for worker in pool.ask("status")["workers"]}
    assert len(pids) == 2
    for words in (["status"], ["top", "--count", "1"]):
        for columns in (60, 80, 200):
            text = run_on_terminal(*words, cwd=pool.folder, redis_url=pool.url, columns=columns)
            check_tables(text.splitlines(), pids, columns)
        piped = run(*words, cwd=pool.folder, redis_url=pool.url, env={"COLUMNS": "60"}).stdout
        assert all(name in piped for name in ("boot", "beat", "rss", "pss", "last exit", "consumers"))


def check_tables(lines: list[str], pids: set[int], columns: int) -> None:
    rows = [line for line in lines if pids & {int(word) for word in line.split() if word.isdigit()}]
    workers = [row for row in rows if "READY" in row.split()]
    assert len(workers) == len(pids), "each is there with its whole pid"
    header = next(line for line in lines if line.startswith("slot")).split()
    assert header[:3] == ["slot", "pid", "state"] and {"running", "done", "failed", "dead"} <= set(header)
    assert ("rss" in header) == (columns == 200), "what matters least is left out first"
    if columns >= 80:
        (group,) = [line.split() for line in lines if line.startswith(STREAM)]
        assert group[:3] == [STREAM, "email_workers", "0"], "the stream's name is whole"
    assert max(len(line) for line in lines if line in workers or line.startswith(("slot", "─"))) <= columns


def test_columns_are_dropped_in_order_and_only_as_many_as_needed() -> None:
    columns, widths = ["a", "b", "c"], [10, 10, 10]
    assert fitting(columns, widths, ["c", "a"], 34) == [0, 1, 2]
    assert fitting(columns, widths, ["c", "a"], 33) == [0, 1]
    assert fitting(columns, widths, ["c", "a"], 21) == [1]
    assert fitting(columns, widths, ["c"], 5) == [0, 1], "what is not in the list stays"


def test_exits_and_durations_in_words() -> None:
    def left(reason: str, code: int | None, number: int | None) -> dict[str, Any]:
        return {"reason": reason, "code": code, "signal": number, "uptime_s": 1.5}

    assert exit_text(None) == "-"
    assert exit_text(left("signal", None, 9)) == "SIGKILL after 1.5 s"
    assert exit_text(left("signal", None, 63)) == "signal 63 after 1.5 s"
    assert exit_text(left("exit", 3, None)) == "exit 3 after 1.5 s"
    assert exit_text(left("hung", None, 9)) == "hung after 1.5 s"
    assert [duration_text(s) for s in (None, 9.94, 61, 7260, 90000)] == ["-", "9.9 s", "1 m 1 s", "2 h 1 m", "1 d 1 h"]


def show(pool) -> list[str]:
    return run("status", cwd=pool.folder, redis_url=pool.url).stdout.splitlines()


def services(pool) -> dict[str, int]:
    return {s["name"]: s["pid"] for s in pool.ask("status")["services"]}


def test_the_services_are_listed_and_the_signal_that_ended_one_is_named(pool) -> None:
    eventually(lambda: "services  keeper READY, api READY" in show(pool))
    os.kill(services(pool)["keeper"], signal.SIGKILL)
    wanted = r"services  keeper READY \(1 restart, the last: SIGKILL after [\d.]+ s\), api READY"
    eventually(lambda: any(re.fullmatch(wanted, line) for line in show(pool)))


def test_what_degrades_the_pool_is_named(pool, redis_server) -> None:
    def killed_until_it_waits() -> list[str] | None:
        pid = services(pool)["api"]
        if pid:
            os.kill(pid, signal.SIGKILL)
        told = pool.ask("status")
        return told["degraded_reasons"] if told["state"] == "degraded" else None

    (trouble,) = eventually(killed_until_it_waits, 20)
    assert re.fullmatch(r"api is restarting \(SIGKILL after [\d.]+ s(, \d+ restarts?)?\)", trouble)
    redis_server.kill()
    lines = show(pool)
    assert lines[0].startswith("degraded  pid") and any(
        line.startswith("          Redis can't be used") for line in lines
    )


@pytest.mark.long
def test_a_failed_restart_is_shown_until_the_next(pool) -> None:
    (pool.folder / "handlers.py").write_text("1 / 0\n")
    assert run("restart", "--wait", cwd=pool.folder, redis_url=pool.url).returncode == 1
    text = "\n".join(show(pool))
    assert re.search(r"(?m)^restart   failed [\w. ]+ ago: nothing was changed", text), text
    assert f"{pool.folder}/handlers.py:1: ZeroDivisionError" in text
    (pool.folder / "handlers.py").write_text(HANDLERS)
    assert run("restart", "--wait", cwd=pool.folder, redis_url=pool.url).returncode == 0
    assert "restart   failed" not in "\n".join(show(pool))


def test_dead_letters_come_with_the_command_that_shows_them(pool) -> None:
    assert "dead letters" not in "\n".join(show(pool))
    assert run("publish", STREAM, "reject=1", cwd=pool.folder, redis_url=pool.url).returncode == 0
    command = f"supervisor dead list {STREAM} email_workers"
    eventually(lambda: "dead letters of email_workers:" in show(pool))
    assert f"  {command}" in show(pool)
    doctor = run("doctor", cwd=pool.folder, redis_url=pool.url).stdout
    assert command in doctor
    words = command.removeprefix("supervisor ").split()
    assert "as requested" in run(*words, cwd=pool.folder, redis_url=pool.url).stdout


def test_status_without_a_pool_says_how_to_start_one(tmp_path: Path) -> None:
    done = run("status", cwd=tmp_path)
    assert done.returncode == 8 and done.stdout.startswith("down      no supervisor answers on")
    assert "`supervisor start` starts this folder's pool" in done.stderr
    socket = tmp_path / ".supervisor" / "redis.sock"
    assert f"redis     unix://{socket}: the embedded server runs only during `supervisor start`\n" in done.stdout
