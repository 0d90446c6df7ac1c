"""`supervisor dead`: what was given up is listed, replayed to its own group, or removed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.cli import dead_operations
from supervisor.keys import dead_key, replay_key
from tests.cli.run import environment, lines_of, run, run_on_terminal, spawn
from tests.process.test_pool import RECORD, seen
from tests.support.letters import add_dead_letter
from tests.support.pool import Pool
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]

HANDLERS = (
    RECORD
    + """
    import pathlib
    @handler("events", group="mail", max_deliveries=1)
    async def mail(message: Message) -> None:
        record("mail-" + message.fields["n"])
        if not pathlib.Path("mended").exists():
            raise ValueError("no mail for " + message.fields["n"])

    @handler("events", group="count")
    async def count(message: Message) -> None:
        record("count-" + message.fields["n"])
"""
)

#: The command, which leaves behind how much memory it had at most (a child's rusage begins with its parent's).
PEAK = """
import atexit, pathlib, re
from supervisor.cli.main import main
status = pathlib.Path("/proc/self/status")
atexit.register(lambda: pathlib.Path("peak").write_text(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]))
main()
"""


def test_dead_letters_are_listed_shown_replayed_to_their_group_and_dropped(
    start_pool: StartPool, redis_server: Any
) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=2)
    redis = redis_server.sync()
    ids = [redis.xadd("events", {"n": n}, id=f"{n + 1}-77").decode() for n in range(4)]
    eventually(lambda: redis.xlen(dead_key("events", "mail")) == 4)
    listed = [json.loads(line) for line in pool.command("dead", "list", "--json").stdout.splitlines()]
    assert {letter["id"] for letter in listed} == set(ids)
    assert {letter["group"] for letter in listed} == {"mail"}
    one = pool.command("dead", "list", "events", "mail", "--text", "mail for 2")
    assert ids[2] in one.stdout and ids[1] not in one.stdout and "1 dead letter" in one.stderr
    shown = pool.command("dead", "show", "events", "mail", ids[2])
    assert "ValueError: no mail for 2" in shown.stdout and "Traceback" in shown.stdout and "n = 2" in shown.stdout
    wrong = pool.command("dead", "show", "events", "mail", "7-7")
    assert wrong.returncode == 2 and "'7-7'" in wrong.stderr

    (pool.folder / "mended").touch()
    redis.xdel("events", ids[3])
    done = pool.command("dead", "replay", "events", "mail", *ids[1:], "--yes")
    assert done.returncode == 0 and "3 replayed" in done.stderr, done.stderr
    eventually(lambda: seen(pool)["mail-1"] == seen(pool)["mail-2"] == seen(pool)["mail-3"] == 2)
    eventually(lambda: redis.xpending("events", "mail")["pending"] == 0)
    assert all(seen(pool)[f"count-{n}"] == 1 for n in range(4)), "the other group got nothing again"
    assert {row["name"].rpartition(b":")[2] for row in redis.xinfo_consumers("events", "mail")} <= {b"0", b"1"}

    gone = pool.command("dead", "drop", "events", "mail", "--text", "no mail", "--yes", "--json")
    assert [json.loads(line)["outcome"] for line in gone.stdout.splitlines()] == ["dropped"]
    assert redis.xlen(dead_key("events", "mail")) == 0
    assert "no dead letter" in pool.command("dead", "drop", "events", "mail").stderr


def test_nothing_is_changed_without_a_yes(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=1)
    redis = redis_server.sync()
    redis.xadd("events", {"n": 1})
    eventually(lambda: redis.xlen(dead_key("events", "mail")) == 1)
    for verb in ("replay", "drop"):
        asked = pool.command("dead", verb, "events", "mail")  # no terminal could answer
        assert asked.returncode == 2 and "--yes" in asked.stderr and "1 dead letter of" in asked.stderr
    assert redis.xlen(dead_key("events", "mail")) == 1


@pytest.mark.parametrize(("word", "code", "left"), [(b"n", 1, 2), (b"y", 0, 0)])
def test_on_a_terminal_it_asks(tmp_path: Path, redis_server: Any, word: bytes, code: int, left: int) -> None:
    with redis_server.sync() as redis:
        for n in range(2):
            add_dead_letter(redis, "events", "mail", {"n": n})
        master, slave = os.openpty()
        with spawn("dead", "drop", "events", "mail", cwd=tmp_path, redis_url=redis_server.url, stdin=slave) as asked:
            os.write(master, word + b"\n")
            _, err = asked.communicate(timeout=30)
        os.close(slave)
        os.close(master)
        assert b"2 dead letters of events mail" in err and b"Drop them?" in err
        assert (asked.returncode, redis.xlen(dead_key("events", "mail"))) == (code, left)


def test_the_list_has_what_show_asks_for_on_a_narrow_terminal_too(tmp_path: Path, redis_server: Any) -> None:
    """Stream, group and an id, none of them cut."""
    (tmp_path / "handlers.py").write_text(
        """
from supervisor import handler

@handler("events:user_created", group="email_workers")
def send(fields: dict[str, str]) -> None: ...
"""
    )
    names = "events:user_created", "email_workers"
    reason = "failed 5 times, the last time with ValueError: " + "no such address " * 9
    with redis_server.sync() as redis:
        letter, entry = add_dead_letter(
            redis, *names, {"n": 1}, entry="5-0", letter="7777-0", reason=reason, dead_at_ms=1_764_000_000_000
        )
    for columns in (80, 120, 200):
        text = run_on_terminal("dead", "list", cwd=tmp_path, redis_url=redis_server.url, columns=columns)
        [line] = [line for line in text.splitlines() if entry in line.split()]
        assert set(names) <= set(line.split()), text
        assert (letter in line) == (columns == 200)
        assert max(map(len, text.splitlines())) <= columns
        assert "…" in text, "the reason goes on"
    shown = run_on_terminal("dead", "show", *names, entry, cwd=tmp_path, redis_url=redis_server.url)
    assert "\ndead_at     2025-11-24 " in shown
    assert f"\nfields\n  n = 1\n\nValueError: no luck with {entry}" in shown, "the traceback, which is long, is last"
    [moment] = [line for line in shown.splitlines() if line.startswith("dead_at")]
    assert moment.endswith(time.tzname[0]), "which zone it is"


def test_letters_are_chosen_in_one_way(tmp_path: Path, redis_server: Any) -> None:
    with redis_server.sync() as redis:
        _, entry = add_dead_letter(redis, "events", "mail", {"n": 1})
        for wrong in (
            [entry, "--text", "x"], ["yesterday"], ["77-7"], ["--older", "-1"], ["--older", "soon"],
            ["--reason", ""], ["--handler", ""], ["--text", ""],  # a variable of the shell that is not set
        ):  # fmt: skip
            done = run("dead", "drop", "events", "mail", *wrong, "--yes", cwd=tmp_path, redis_url=redis_server.url)
            assert done.returncode == 2 and not done.stdout, done.stderr
        assert redis.xlen(dead_key("events", "mail")) == 1


def test_age_reason_and_handler_choose_and_new_letters_are_left_alone(tmp_path: Path, redis_server: Any) -> None:
    now_ms = int(time.time() * 1000)
    with redis_server.sync() as redis:
        for n in range(40):
            add_dead_letter(
                redis, "events", "mail", {"n": n}, reason="Timeout" if n % 2 else "KeyError", handler=f"mod.h{n % 4}",
                dead_at_ms=now_ms - (7_200_000 if n < 20 else 0),
            )  # fmt: skip
        flags = ("--reason", "timeout", "--handler", "h1", "--older", "3600")
        listed = run("dead", "list", "events", "mail", *flags, "--count", "2", cwd=tmp_path, redis_url=redis_server.url)
        assert "5 dead letters, 2 shown" in listed.stderr
        done = run(
            "dead", "replay", "events", "mail", *flags, "--yes", "--json", cwd=tmp_path, redis_url=redis_server.url
        )
        assert done.returncode == 0 and "5 dead letters of" in done.stderr and "5 replayed" in done.stderr
        assert [line["outcome"] for line in lines_of(done)] == ["replayed"] * 5
        assert redis.xlen(dead_key("events", "mail")) == 35 and redis.xlen(replay_key("events", "mail")) == 5
        listed = run("dead", "list", "events", "mail", "--count", "3", cwd=tmp_path, redis_url=redis_server.url)
        assert "35 dead letters, 3 shown" in listed.stderr and len(listed.stdout.splitlines()) == 5


@pytest.mark.parametrize(
    "words",
    [
        ("list", "--json", "--count", "100000"),
        pytest.param(("drop", "--text", "letter", "--yes"), marks=pytest.mark.long),
    ],
)
@pytest.mark.long
def test_many_letters_are_never_in_memory_at_once(tmp_path: Path, redis_server: Any, words: tuple[str, ...]) -> None:
    count, size = 10_000, 20_000
    with redis_server.sync() as redis:
        for at in range(0, count, 500):
            pipe = redis.pipeline(transaction=False)
            for n in range(at, at + 500):
                pipe.xadd(dead_key("events", "mail"), {"id": f"{n + 1}-0", "field:text": "letter" + "x" * size})
            pipe.execute()
        verb, *flags = words
        with (tmp_path / "out").open("wb") as out:
            done = subprocess.run(
                [sys.executable, "-c", PEAK, "dead", verb, "events", "mail", *flags], cwd=tmp_path, stdout=out,
                stderr=subprocess.PIPE, env=environment(redis_server.url), timeout=60, check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peak_bytes = int((tmp_path / "peak").read_text()) * 1024
        assert peak_bytes < count * size / 2, "all of them would be twice as much at least"
        if verb == "list":
            assert len((tmp_path / "out").read_bytes().splitlines()) == count
        else:
            assert redis.xlen(dead_key("events", "mail")) == 0


def test_long_work_tells_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_operations, "PROGRESS_S", 0.0)
    dead_operations.ProgressLine("replayed", 1_000_000)(1_500)
    assert capsys.readouterr().err == "replayed 1,500 of 1,000,000\n"
    monkeypatch.setattr(dead_operations, "PROGRESS_S", 60.0)
    dead_operations.ProgressLine("replayed", 1_000_000)(1_500)
    assert capsys.readouterr().err == ""


def test_what_redis_refuses_is_told_and_kept(tmp_path: Path, redis_server: Any) -> None:
    with redis_server.sync() as redis:
        for n in range(3):
            add_dead_letter(redis, "events", "mail", {"n": n})
        redis.delete("events")
        redis.set("events", "text")
        done = run("dead", "replay", "events", "mail", "--yes", cwd=tmp_path, redis_url=redis_server.url)
        assert done.returncode == 1 and "WRONGTYPE" in done.stderr and "0 replayed" in done.stderr
        assert redis.xlen(dead_key("events", "mail")) == 3
