"""`supervisor dead`: what was given up is listed, put back to its own group, or removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from supervisor.names import dead_key
from tests.process.test_pool import RECORD, seen
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


def test_dead_letters_are_listed_shown_replayed_to_their_group_and_dropped(
    start_pool: StartPool, redis_server: Any
) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=2)
    redis = redis_server.sync()
    ids = [redis.xadd("events", {"n": n}).decode() for n in range(4)]
    eventually(lambda: redis.xlen(dead_key("events", "mail")) == 4)
    listed = [json.loads(line) for line in pool.command("dead", "list", "--json").stdout.splitlines()]
    assert {letter["id"] for letter in listed} == set(ids)
    assert {letter["group"] for letter in listed} == {"mail"}
    one = pool.command("dead", "list", "events", "mail", "--text", "mail for 2")
    assert ids[2] in one.stdout and ids[1] not in one.stdout and "1 dead letter" in one.stderr
    shown = pool.command("dead", "show", "events", "mail", ids[2])
    assert "ValueError: no mail for 2" in shown.stdout and "Traceback" in shown.stdout and "n = 2" in shown.stdout
    wrong = pool.command("dead", "show", "events", "mail", "1-1")
    assert wrong.returncode == 2 and "'1-1'" in wrong.stderr

    (pool.folder / "mended").touch()
    redis.xdel("events", ids[3])
    done = pool.command("dead", "replay", "events", "mail", *ids[1:], "--yes")
    assert done.returncode == 1 and f"{ids[3]} is no longer in the stream" in done.stderr, done.stderr
    assert "2 replayed" in done.stderr
    eventually(lambda: seen(pool)["mail-1"] == seen(pool)["mail-2"] == 2)
    eventually(lambda: redis.xpending("events", "mail")["pending"] == 0)
    assert all(seen(pool)[f"count-{n}"] == 1 for n in range(4)), "the other group got nothing again"
    assert {row["name"].rpartition(b":")[2] for row in redis.xinfo_consumers("events", "mail")} <= {b"0", b"1"}

    gone = pool.command("dead", "drop", "events", "mail", "--text", "no mail", "--yes", "--json")
    assert [json.loads(line)["outcome"] for line in gone.stdout.splitlines()] == ["dropped", "dropped"]
    assert redis.xlen(dead_key("events", "mail")) == 0
    assert "no dead letter" in pool.command("dead", "drop", "events", "mail").stderr


def test_nothing_is_changed_without_a_yes(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=1)
    redis = redis_server.sync()
    redis.xadd("events", {"n": 1})
    eventually(lambda: redis.xlen(dead_key("events", "mail")) == 1)
    for verb in ("replay", "drop"):
        asked = pool.command("dead", verb, "events", "mail")  # nobody answers
        assert asked.returncode != 0
    assert redis.xlen(dead_key("events", "mail")) == 1
