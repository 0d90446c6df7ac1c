"""`supervisor dead` when Redis is full or dies, when other programs wrote the letters, and when arguments are odd."""

import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from supervisor.keys import dead_key, replay_key
from tests.cli.run import COMMAND, environment, lines_of, run, run_on_terminal
from tests.support.letters import add_dead_letter
from tests.support.proxy import REQUEST, Proxy

GROUP = ("events", "mail")
KEY = dead_key(*GROUP)


def test_a_full_redis_still_shows_and_drops_them(tmp_path: Path, redis_server: Any) -> None:
    with redis_server.sync() as redis:
        for n in range(2):
            _, entry = add_dead_letter(redis, *GROUP, {"n": n}, trimmed=True)
        redis.config_set("maxmemory", 1)
        refused = run("dead", "replay", *GROUP, "--yes", cwd=tmp_path, redis_url=redis_server.url)
        assert refused.returncode == 1 and "0 replayed" in refused.stderr and "maxmemory" in refused.stderr
        listed = run("dead", "list", *GROUP, "--json", cwd=tmp_path, redis_url=redis_server.url)
        assert len(lines_of(listed)) == 2
        told = run("explain", entry, "events", cwd=tmp_path, redis_url=redis_server.url)
        assert told.returncode == 0 and "dead letter" in told.stdout
        dropped = run("dead", "drop", *GROUP, "--yes", cwd=tmp_path, redis_url=redis_server.url)
        assert dropped.returncode == 0 and redis.xlen(KEY) == 0


def test_what_is_not_known_of_an_interrupted_replay_is_told_and_done_again(tmp_path: Path, redis_server: Any) -> None:
    count = 1_000
    with redis_server.sync() as redis, Proxy(redis_server.url) as proxy:
        pipe = redis.pipeline(transaction=False)
        for n in range(count):
            pipe.xadd(KEY, {"id": f"{n + 1}-0", "field:n": n})
        pipe.execute()
        # The first page is one letter, the second 500: some 140 kB, this is in the midst of them.
        proxy.set(reset_after=70_000, reset_in=REQUEST)
        cut = run("dead", "replay", *GROUP, "--yes", cwd=tmp_path, redis_url=proxy.url)
        assert proxy.did["reset in the middle"] == 1 and 10 < count - redis.xlen(KEY) < count
        assert cut.returncode == 3 and "\n1 replayed\n" in cut.stderr
        assert "no answer for up to 500 more: some may be replayed" in cut.stderr
        again = run("dead", "replay", *GROUP, "--yes", cwd=tmp_path, redis_url=redis_server.url)
        assert again.returncode == 0 and "missing" not in again.stderr and redis.xlen(KEY) == 0
        assert redis.xlen(replay_key(*GROUP)) == count, "each once"


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (("--reason", "Timeot"), "no dead letter has 'Timeot' in its reason, did you mean 'Timeout'?"),
        (("--reason", "xyz"), "no dead letter has 'xyz' in its reason (there are: KeyError, HandlerTimeoutError)"),
        (("--handler", "snd"), "no dead letter has 'snd' in its handler, did you mean 'send'?"),
        (("--handler", "send_mial"), "no dead letter has 'send_mial' in its handler, did you mean 'send_mail'?"),
        (("--reason", "KeyEror", "--handler", "snd"), "'KeyEror' in its reason, did you mean 'KeyError'?"),
        (("--reason", "keyerror", "--older", "9999d"), "no dead letter is 9999 d 0 h old; the oldest is "),
        (("--text", "n=1"), "no dead letter has 'n=1' in a field's name or value, its id or its error"),
    ],
)
def test_a_filter_that_fits_nothing_is_answered_with_what_there_is(
    tmp_path: Path, redis_server: Any, flags: tuple[str, ...], hint: str
) -> None:
    with redis_server.sync() as redis:
        for n in range(3):
            error = f"KeyError: no mail with {n}" if n else "HandlerTimeoutError: not done within timeout_s = 60"
            reason = f"failed {'once,' if n == 1 else '3 times, the last time'} with {error}"
            about = {"reason": reason, "handler": "handlers.mail.send_mail"}
            add_dead_letter(redis, *GROUP, {"n": n}, **about, dead_at_ms=int(time.time() * 1000))
    for words in (("list",), ("list", "--json"), ("replay",), ("drop", "--json", "--yes")):
        done = run("dead", *words, *GROUP, *flags, cwd=tmp_path, redis_url=redis_server.url)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert hint in done.stderr and bool(re.search("no dead letter (has|is) ", done.stderr)) == bool(hint)


def test_letters_and_fields_that_others_wrote_are_shown(tmp_path: Path, redis_server: Any) -> None:
    with redis_server.sync() as redis:
        letter = redis.xadd(
            KEY,
            {"exit_code": "no", "deliveries": "9" * 5_000, "dead_at_ms": "9" * 18, "field:t": "\x1b]0;x\x07\u00e4"},
        ).decode()  # fmt: skip
        listed = run("dead", "list", *GROUP, cwd=tmp_path, redis_url=redis_server.url)
        assert listed.returncode == 0 and letter in listed.stdout, listed.stderr
        assert "d 2" not in listed.stdout, "an unknown age is shown as none"
        shown = run_on_terminal("dead", "show", *GROUP, letter, cwd=tmp_path, redis_url=redis_server.url)
        assert "t = \\x1b]0;x\\x07\u00e4" in shown and "\x1b" not in shown
        done = run("dead", "replay", *GROUP, "--yes", cwd=tmp_path, redis_url=redis_server.url)
        assert done.returncode == 1 and f"{letter} can't be replayed" in done.stderr and redis.xlen(KEY) == 1


def test_an_id_means_the_same_however_it_is_written(tmp_path: Path, redis_server: Any) -> None:
    with redis_server.sync() as redis:
        letter, _ = add_dead_letter(redis, *GROUP, {"n": 1}, entry="5-0", letter="100-0")
        add_dead_letter(redis, *GROUP, {"n": 2}, entry="5-3", letter="100-3")
        for written in ("5", "005-0", "0100"):
            shown = run("dead", "show", *GROUP, written, cwd=tmp_path, redis_url=redis_server.url)
            assert f"{letter}\n" in shown.stdout, (written, shown.stderr)


def test_an_id_of_a_letter_and_of_anothers_message_is_refused(tmp_path: Path, redis_server: Any) -> None:
    with redis_server.sync() as redis:
        add_dead_letter(redis, *GROUP, {"n": 1}, entry="5-0", letter="7-0")
        add_dead_letter(redis, *GROUP, {"n": 2}, entry="7-0", letter="9-0")
        add_dead_letter(redis, *GROUP, {"n": 3}, entry="10-0", letter="10-0")
        for words in (("show", *GROUP, "7-0"), ("drop", *GROUP, "7-0", "--yes")):
            done = run("dead", *words, cwd=tmp_path, redis_url=redis_server.url)
            assert done.returncode == 2 and "5-0" in done.stderr and "9-0" in done.stderr, done.stderr
        assert redis.xlen(KEY) == 3
        for clear in ("5-0", "9-0", "10-0"):
            done = run("dead", "drop", *GROUP, clear, "--yes", cwd=tmp_path, redis_url=redis_server.url)
            assert done.returncode == 0, done.stderr
        assert redis.xlen(KEY) == 0


@pytest.mark.parametrize(
    "words",
    [
        ("list", *GROUP, "--older", "nan"), ("list", *GROUP, "--older", "inf"), ("list", *GROUP, "--older", "1e308"),
        ("show", *GROUP, "1_0-0"), ("show", *GROUP, " 5"), ("show", *GROUP, "\u0663"), ("show", *GROUP, "5-"),
        ("show", *GROUP, f"{2**64}-0"), ("list", os.fsdecode(b"\xff"), "mail"),
        ("list", "events", os.fsdecode(b"\xff")),
    ],
    ids=ascii,
)  # fmt: skip
def test_odd_arguments_are_refused_in_words(tmp_path: Path, redis_url: str, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [*COMMAND, "dead", *words],
        cwd=tmp_path,
        env=environment(redis_url),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b""), done.stderr
    assert b"Traceback" not in done.stderr
