"""All commands answer unknown names of streams and groups in the same way."""

from pathlib import Path

import pytest

from supervisor.keys import LATER_STREAMS_KEY, later_key
from tests.cli.run import run, spawn
from tests.support.letters import add_dead_letter
from tests.support.servers import AnyServer
from tests.support.waiting import eventually

HANDLERS = """
from supervisor import handler

@handler("events", group="mail")
@handler("orders", group="bills")
def handle(fields: dict[str, str]) -> None: ...
"""
OF_A_STREAM = [("read",), ("streams",), ("explain", "1-0"), ("dead", "list"), ("later", "list")]
OF_A_GROUP = [
    (("pending",), ()),
    (("dead", "list"), ()),
    (("dead", "show"), ("1-0",)),
    (("dead", "replay"), ("--yes",)),
    (("dead", "replay"), ("1-0", "--yes")),
    (("dead", "drop"), ("--yes",)),
    (("dead", "drop"), ("--reason", "x", "--yes")),
]


@pytest.fixture
def folder(tmp_path: Path, redis_server: AnyServer) -> Path:
    (tmp_path / "handlers.py").write_text(HANDLERS)
    with redis_server.sync() as redis:
        redis.xadd("events", {"n": 1}, id="1-0")
        redis.xgroup_create("events", "mail", "0")
        redis.xadd("alone", {"n": 1})
        redis.xgroup_create("alone", "reports", "0")
        add_dead_letter(redis, "gone", "letters", {"n": 1})
        redis.delete("gone")
    return tmp_path


def test_an_unknown_stream(folder: Path, redis_server: AnyServer) -> None:
    for words in OF_A_STREAM:
        for name, hint in (("event", ", did you mean 'events'?"), ("xyz", "; `supervisor streams` shows")):
            done = run(*words, name, cwd=folder, redis_url=redis_server.url)
            assert (done.returncode, done.stdout) == (2, ""), words
            assert f"error: the stream '{name}' does not exist{hint}" in done.stderr, words


def test_an_unknown_group(folder: Path, redis_server: AnyServer) -> None:
    cases = (
        ("events", "mial", "stream 'events' has no group 'mial', did you mean 'mail'?"),
        ("alone", "reprots", "stream 'alone' has no group 'reprots', did you mean 'reports'?"),
        ("events", "xyz", "stream 'events' has no group 'xyz' (there are: mail)"),
        ("event", "mail", "the stream 'event' does not exist, did you mean 'events'?"),
    )
    for words, more in OF_A_GROUP:
        for stream, group, text in cases if words == ("pending",) else cases[:1]:
            done = run(*words, stream, group, *more, cwd=folder, redis_url=redis_server.url)
            assert (done.returncode, done.stdout) == (2, ""), words
            assert f"error: {text}" in done.stderr, words


def test_what_a_handler_declares_or_has_left_is_known(folder: Path, redis_server: AnyServer) -> None:
    """No pool has created `orders` yet; of `gone` there is a dead letter and no stream."""
    for words in (("read", "orders"), ("streams", "orders"), ("pending", "orders", "bills")):
        assert run(*words, cwd=folder, redis_url=redis_server.url).returncode == 0, words
    for words in (("list", "orders", "bills"), ("drop", "orders", "bills"), ("list", "gone", "letters")):
        assert run("dead", *words, cwd=folder, redis_url=redis_server.url).returncode == 0, words


def test_a_stream_of_which_redis_has_only_messages_for_later_is_known(folder: Path, redis_server: AnyServer) -> None:
    with redis_server.sync() as redis:
        redis.zadd(later_key("coming"), {'{"n":"1"}': 4e12})
        redis.hset(LATER_STREAMS_KEY, "emptied", 1)
    done = run("later", "list", "coming", "emptied", cwd=folder, redis_url=redis_server.url)
    assert done.returncode == 0 and "n=1" in done.stdout, done.stderr


def test_tail_says_it_too_and_waits_for_the_first_entry(folder: Path, redis_server: AnyServer) -> None:
    words = ("tail", "event", "--count", "1", "--json")
    with spawn(*words, cwd=folder, redis_url=redis_server.url) as tail, redis_server.sync() as redis:
        eventually(lambda: redis.client_list() and any(one["cmd"] == "xread" for one in redis.client_list()), 20)
        redis.xadd("event", {"n": 1}, id="5-0")
        out, err = tail.communicate(timeout=20)
    assert tail.returncode == 0 and b'"5-0"' in out
    assert b"the stream 'event' does not exist, did you mean 'events'?" in err and b"waiting for it" in err


def test_reasons_are_whole_in_a_pipe(folder: Path, redis_server: AnyServer) -> None:
    reason = "ValueError: " + "x" * 300
    with redis_server.sync() as redis:
        add_dead_letter(redis, "events", "mail", {"n": 1}, reason=reason)
    assert reason in run("dead", "list", "events", "mail", cwd=folder, redis_url=redis_server.url).stdout
