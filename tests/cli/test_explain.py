"""`supervisor explain`: what became of a message, on every server and with a pool at work."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.broker.dead_letters import by_ids
from supervisor.broker.entry_lookup import BEFORE_MAX, collect
from supervisor.broker.replay import replay
from supervisor.core.entry_fate import Fate, GroupFacts, explain
from supervisor.core.replayed_copy import ORIGIN
from supervisor.keys import REPLAY_CONSUMER, crashes_key, dead_key, replay_key, retries_key
from tests.cli.run import data, run
from tests.support.pool import Pool
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
STREAM = "events"
HANDLERS = """
    import asyncio, pathlib
    from supervisor import Message, Reject, handler

    @handler("events", group="mail", retry_base_s=3600)
    async def mail(message: Message) -> None:
        match message.fields["n"]:
            case "later":
                raise ValueError("not now")
            case "never":
                raise Reject("no such address")
            case "long":
                while not pathlib.Path("go").exists():
                    await asyncio.sleep(0.01)

    @handler("events", group="count")
    async def count(message: Message) -> None: ...
"""


async def told(redis: Any, entry: bytes | str, groups: tuple[str, ...] = ()) -> dict[str, tuple[Fate, GroupFacts]]:
    text = entry if isinstance(entry, str) else entry.decode()
    verdict = explain(*await collect(redis, STREAM, text, groups))
    return {one.facts.group: (one.fate, one.facts) for one in verdict.groups}


async def test_the_facts_of_each_fate(every_server: Any) -> None:
    async with every_server.client() as redis:
        ids = [await redis.xadd(STREAM, {"n": n}) for n in range(8)]
        await redis.xgroup_create(STREAM, "g", "0")
        await redis.xreadgroup("g", "host:0", {STREAM: ">"}, count=5)
        await redis.xack(STREAM, "g", ids[0], ids[3], ids[4])
        now_ms = int((await redis.time())[0]) * 1000
        await redis.hset(retries_key(STREAM, "g"), ids[1], f"2:{now_ms + 60_000}:60000")
        await redis.hset(crashes_key(STREAM, "g"), ids[2], 1)
        await redis.xadd(replay_key(STREAM, "g"), {ORIGIN: ids[3], "n": 3})
        letter = await redis.xadd(
            dead_key(STREAM, "g"), {"id": ids[4], "reason": "Boom", "deliveries": 3, "dead_at_ms": now_ms}
        )
        assert (await told(redis, ids[0]))["g"][0] is Fate.DONE
        fate, facts = (await told(redis, ids[1]))["g"]
        assert (fate, facts.consumer, facts.attempts, facts.next_due_ms) == (
            Fate.WAITING, "host:0", 2, now_ms + 60_000,
        )  # fmt: skip
        fate, facts = (await told(redis, ids[2]))["g"]
        assert (fate, facts.crashes, facts.deliveries) == (Fate.IN_HAND, 1, 1)
        fate, facts = (await told(redis, ids[3]))["g"]
        assert (fate, facts.consumer, facts.deliveries) == (Fate.PUT_BACK, REPLAY_CONSUMER, 0)
        fate, facts = (await told(redis, ids[4]))["g"]
        assert fate is Fate.DEAD and facts.letter is not None
        assert (facts.letter.letter_id, facts.letter.reason) == (letter.decode(), "Boom")
        for at, before in ((5, 0), (7, 2)):
            fate, facts = (await told(redis, ids[at]))["g"]
            assert (fate, facts.before, facts.before_at_least) == (Fate.NOT_DELIVERED, before, False)
        # It is gone from the stream: what Redis still holds of it is shown, and nothing is made up.
        await redis.xdel(STREAM, *ids)
        fates = [(await told(redis, entry, ("later",)))["g"][0] for entry in ids]
        assert fates == [
            Fate.UNKNOWN, Fate.WAITING, Fate.IN_HAND, Fate.PUT_BACK, Fate.DEAD, *[Fate.NEVER_DELIVERED] * 3,
        ]  # fmt: skip
        assert (await told(redis, ids[0], ("later",)))["later"][0] is Fate.NO_GROUP


@pytest.mark.parametrize("trimmed", [False, True])
async def test_a_replayed_message_is_found_by_its_copy(every_server: Any, trimmed: bool) -> None:
    async with every_server.client() as redis:
        entry = await redis.xadd(STREAM, {"n": 1})
        await redis.xgroup_create(STREAM, "g", "$")
        await redis.xadd(dead_key(STREAM, "g"), {"id": entry, "reason": "Boom", "deliveries": 3, "field:n": 1})
        if trimmed:
            await redis.xdel(STREAM, entry)
        letter = (await by_ids(redis, STREAM, "g", [entry.decode()]))[entry.decode()]
        [outcome] = await replay(redis, [letter])
        assert outcome.outcome == "replayed"
        fate, facts = (await told(redis, entry))["g"]
        assert (fate, facts.consumer, facts.last_delivered) == (Fate.PUT_BACK, REPLAY_CONSUMER, entry.decode())
        copies = replay_key(STREAM, "g")
        [[_, [(copy, _)]]] = await redis.xreadgroup("g", "host:0", {copies: ">"})
        fate, facts = (await told(redis, entry))["g"]
        assert (fate, facts.consumer, facts.deliveries) == (Fate.IN_HAND, "host:0", 1)
        now_ms = int((await redis.time())[0]) * 1000
        await redis.hset(retries_key(copies, "g"), copy, f"1:{now_ms + 60_000}:60000")
        await redis.hset(crashes_key(copies, "g"), copy, 2)
        fate, facts = (await told(redis, entry))["g"]
        assert (fate, facts.attempts, facts.crashes) == (Fate.WAITING, 1, 2)
        await redis.xack(copies, "g", copy)
        fate, facts = (await told(redis, entry))["g"]
        assert fate is (Fate.UNKNOWN if trimmed else Fate.DONE), "it is settled, and only its copy is still there"
        await redis.xdel(copies, copy)
        assert (await told(redis, entry))["g"][0] is fate


async def test_many_before_it_and_many_letters_are_counted_up_to_a_limit(every_server: Any) -> None:
    async with every_server.client() as redis:
        pipe = redis.pipeline(transaction=False)
        for n in range(BEFORE_MAX + 10):
            pipe.xadd(STREAM, {"n": n}, id=f"{n + 1}-0")
        for n in range(50):
            pipe.xadd(dead_key(STREAM, "g"), {"id": f"{n + 1}-0"}, id=f"{n + 1}-5")
        await pipe.execute()
        await redis.xgroup_create(STREAM, "g", "0")
        for last, before, more in ((BEFORE_MAX + 1, BEFORE_MAX, False), (BEFORE_MAX + 2, BEFORE_MAX, True)):
            _, facts = (await told(redis, f"{last}-0"))["g"]
            assert (facts.before, facts.before_at_least) == (before, more)
        await redis.xgroup_setid(STREAM, "g", "$")
        _, (facts,) = await collect(redis, STREAM, "60-0", letters_max=20)
        assert (facts.letter, facts.letters_left) == (None, 30)
        _, (facts,) = await collect(redis, STREAM, "45-0", letters_max=20)
        assert facts.letter is not None and facts.letter.letter_id == "45-5", "it begins at the message's time"


def test_what_became_of_each_message_of_a_pool(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, config='[pool]\nhost = "here"\ndrain_s = 0.5\n')
    redis = redis_server.sync()
    ids = {n: redis.xadd(STREAM, {"n": n}).decode() for n in ("quick", "later", "never", "long")}

    def fate(n: str) -> dict[str, Any]:
        done = pool.command("explain", ids[n], "--json")
        assert done.returncode == 0, done.stderr
        (stream,) = json.loads(done.stdout)
        assert stream["presence"] == "stored" and stream["known"] is True
        groups = {group["group"]: group for group in stream["groups"]}
        assert groups["count"]["fate"] == "done"
        found: dict[str, Any] = groups["mail"]
        return found

    eventually(lambda: redis.xpending(STREAM, "mail")["pending"] == 2 and redis.xlen(dead_key(STREAM, "mail")) == 1)
    eventually(lambda: redis.hlen(retries_key(STREAM, "mail")) == 1)
    eventually(lambda: redis.xpending(STREAM, "count")["pending"] == 0)
    assert fate("quick")["fate"] == "done"
    waiting = fate("later")
    assert (waiting["fate"], waiting["consumer"], waiting["attempts"]) == ("waiting for a retry", "here:0", 1)
    assert (fate("never")["fate"], fate("never")["letter"]["reason"]) == ("dead letter", "no such address")
    assert (fate("long")["fate"], fate("long")["consumer"]) == ("in hand", "here:0")

    shown = pool.command("explain", ids["never"], STREAM)
    assert shown.stdout.startswith(f"{STREAM} {ids['never']}: in the stream, ")
    assert "no such address" in shown.stdout
    assert f"supervisor dead show {STREAM} mail " in shown.stderr
    shown = pool.command("explain", ids["later"])
    assert re.search(r"1 attempt failed, next attempt in \d+ m", shown.stdout)


def test_what_nobody_knows_is_told_with_exit_code_1(tmp_path: Path, redis_server: Any) -> None:
    redis = redis_server.sync()
    for n in (5, 6):
        redis.xadd(STREAM, {"n": n}, id=f"{n}-0")
    redis.xgroup_create(STREAM, "g", "0")
    redis.xdel(STREAM, "5-0")

    def asked(entry: str, stream: str = STREAM) -> tuple[int, str]:
        done = run("explain", entry, stream, cwd=tmp_path, redis_url=redis_server.url)
        assert done.stderr == ""
        return done.returncode, done.stdout.splitlines()[0]

    assert asked("7") == (1, "events 7-0: not published yet: the stream's last id is 6-0")
    assert asked("5-0") == (
        1, "events 5-0: not in the stream (it begins at 6-0): trimmed, deleted, or never there",
    )  # fmt: skip
    assert asked("6-0")[0] == 0
    redis.xadd(replay_key(STREAM, "g"), {ORIGIN: "5-0", "n": 5})
    done = run("explain", "5", STREAM, cwd=tmp_path, redis_url=redis_server.url)
    assert done.returncode == 0 and re.search(r"put back +no worker has read it yet", done.stdout), done.stdout
    (found,) = data(run("explain", "7", STREAM, "--json", cwd=tmp_path, redis_url=redis_server.url))
    assert (found["presence"], found["known"], found["last_id"]) == ("not published yet", False, "6-0")


@pytest.mark.parametrize("word", ["yesterday", "18446744073709551616"])
def test_an_id_that_is_none_is_unknown(tmp_path: Path, redis_server: Any, word: str) -> None:
    done = run("explain", word, STREAM, cwd=tmp_path, redis_url=redis_server.url)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{STREAM} {word}: neither the id of an entry, such as 1764000000000-0, nor of a")
