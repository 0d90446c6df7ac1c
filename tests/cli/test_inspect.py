"""Lag, pending and ages are right on every server, even where the server's own figures are wrong."""

from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from supervisor.broker import inspect
from supervisor.broker.inspect import LAG_COUNT_MAX, GroupInfo
from supervisor.errors import UsageError
from supervisor.keys import POOLS_KEY, dead_key, retries_key
from tests.cli.run import data, run

STREAM, GROUP = "events:x", "g"


async def fill(client: Redis, count: int, first: int = 1) -> None:
    pipe = client.pipeline(transaction=False)
    for number in range(first, first + count):
        pipe.xadd(STREAM, {"n": number}, id=f"{number}-0")
    await pipe.execute()


async def deliver(client: Redis, count: int, consumer: str = "c") -> list[bytes]:
    reply: Any = await client.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=count)
    return [entry_id for entry_id, _ in reply[0][1]]


async def group(client: Redis) -> GroupInfo:
    (found,) = await inspect.groups(client, [(STREAM, GROUP)])
    return found


async def test_a_stream_and_a_group_that_do_not_exist(every_server) -> None:
    async with every_server.client() as client:
        (stream,) = await inspect.streams(client, [STREAM])
        assert (stream.exists, stream.length, stream.groups) == (False, 0, ())
        missing = await group(client)
        assert (missing.exists, missing.lag, missing.oldest_s) == (False, 0, None)
        await fill(client, 3)
        waiting = await group(client)
        assert (waiting.exists, waiting.lag, waiting.consumers) == (False, 3, 0)
        assert waiting.oldest_s is not None and waiting.oldest_s > 1e9  # id 1-0 is of 1970


async def test_lag_and_pending_follow_delivery(every_server) -> None:
    async with every_server.client() as client:
        await fill(client, 10)
        await client.xgroup_create(STREAM, GROUP, "0")
        assert (await group(client)).lag == 10
        ids = await deliver(client, 4)
        found = await group(client)
        assert (found.lag, found.pending, found.consumers, found.lag_at_least) == (6, 4, 1, False)
        await client.xack(STREAM, GROUP, *ids)
        await deliver(client, 100)
        await client.xack(STREAM, GROUP, *[f"{n}-0" for n in range(1, 11)])
        done = await group(client)
        assert (done.lag, done.pending, done.oldest_s) == (0, 0, None)


@pytest.mark.parametrize("start", ["0", "5-0", "$"])
async def test_lag_of_a_group_that_begins_anywhere(every_server, start: str) -> None:
    async with every_server.client() as client:
        await fill(client, 10)
        await client.xgroup_create(STREAM, GROUP, start)
        await fill(client, 2, first=11)
        assert (await group(client)).lag == {"0": 12, "5-0": 7, "$": 2}[start]


async def test_lag_of_an_emptied_stream_is_0(every_server) -> None:
    async with every_server.client() as client:
        await fill(client, 2)
        await client.xgroup_create(STREAM, GROUP, "0")
        await client.xtrim(STREAM, maxlen=0)
        found = await group(client)
        assert (found.lag, found.oldest_s) == (0, None)


async def test_lag_after_deletions_ahead_of_the_group(every_server) -> None:
    async with every_server.client() as client:
        await fill(client, 10)
        await client.xgroup_create(STREAM, GROUP, "0")
        await deliver(client, 3)
        await client.xdel(STREAM, "5-0", "7-0", "10-0")
        assert (await group(client)).lag == 4  # 4 6 8 9
        await client.xtrim(STREAM, minid="8-0", approximate=False)
        assert (await group(client)).lag == 2  # 8 9


async def test_lag_that_nobody_knows_is_counted_up_to_a_limit(every_server) -> None:
    async with every_server.client() as client:
        await fill(client, LAG_COUNT_MAX + 10)
        await client.xgroup_create(STREAM, GROUP, "0")
        await deliver(client, 5)
        await client.xdel(STREAM, f"{LAG_COUNT_MAX + 5}-0")
        found = await group(client)
        assert (found.lag, found.lag_at_least) == (LAG_COUNT_MAX, True)
        await deliver(client, 5)
        exact = await group(client)
        assert (exact.lag, exact.lag_at_least) == (LAG_COUNT_MAX - 1, False)


async def test_the_oldest_is_the_first_that_is_not_settled(every_server) -> None:
    async with every_server.client() as client:
        seconds, micros = await client.time()
        now_ms = seconds * 1000 + micros // 1000
        for age_s in (300, 200, 100):
            await client.xadd(STREAM, {"a": "1"}, id=f"{now_ms - age_s * 1000}-0")
        await client.xgroup_create(STREAM, GROUP, "0")
        ages = []
        for _ in range(3):
            oldest_s = (await group(client)).oldest_s
            assert oldest_s is not None
            ages.append(round(oldest_s, -2))
            (entry_id,) = await deliver(client, 1)
            held = await group(client)
            assert round(held.oldest_s or 0, -2) == ages[-1]  # pending counts as well
            await client.xack(STREAM, GROUP, entry_id)
        assert ages == [300, 200, 100]
        assert (await group(client)).oldest_s is None


async def test_dead_letters_and_retries_are_counted(every_server) -> None:
    async with every_server.client() as client:
        await fill(client, 3)
        await client.xgroup_create(STREAM, GROUP, "0")
        await deliver(client, 3)
        await client.xadd(dead_key(STREAM, GROUP), {"reason": "x"})
        await client.hset(retries_key(STREAM, GROUP), mapping={"2-0": "3:1700000000000:1000"})
        found = await group(client)
        assert (found.dead, found.retrying) == (1, 1)
        rows = await inspect.pending(client, STREAM, GROUP, 2)
        assert [(row.id, row.consumer, row.deliveries, row.attempts, row.next_due_ms) for row in rows] == [
            ("1-0", "c", 1, 0, None),
            ("2-0", "c", 1, 3, 1_700_000_000_000),
        ]
        with pytest.raises(UsageError, match=r"no group 'gg', did you mean 'g'\?"):
            await inspect.pending(client, STREAM, "gg")


async def test_many_pairs_keep_their_order(every_server) -> None:
    async with every_server.client() as client:
        for stream in ("a", "b"):
            await client.xadd(stream, {"n": 1})
            await client.xgroup_create(stream, "g1", "0")
            await client.xgroup_create(stream, "g2", "$")
        pairs = [("b", "g2"), ("a", "g1"), ("b", "g1"), ("c", "g1"), ("a", "g2")]
        found = await inspect.groups(client, pairs)
        assert [(info.stream, info.group) for info in found] == pairs
        assert [info.lag for info in found] == [0, 1, 1, 0, 0]
        assert await inspect.groups(client, []) == []


async def test_the_commands_show_it(tmp_path: Path, redis_server) -> None:
    async with redis_server.client() as client:
        await fill(client, 5)
        await client.xgroup_create(STREAM, GROUP, "0")
        await deliver(client, 2, consumer="host:0")
    (stream,) = data(run("streams", STREAM, "--json", cwd=tmp_path, redis_url=redis_server.url))
    assert (stream["length"], stream["first_id"], stream["last_id"]) == (5, "1-0", "5-0")
    assert [(g["group"], g["lag"], g["pending"]) for g in stream["groups"]] == [(GROUP, 3, 2)]
    rows = data(run("pending", STREAM, GROUP, "--json", cwd=tmp_path, redis_url=redis_server.url))
    assert [(row["id"], row["consumer"]) for row in rows] == [("1-0", "host:0"), ("2-0", "host:0")]
    table = run("pending", STREAM, GROUP, "--count", "1", cwd=tmp_path, redis_url=redis_server.url)
    assert table.stdout.splitlines()[-1].split()[:2] == ["1-0", "host:0"]
    assert "the first 1; --count shows more" in table.stderr
    (tmp_path / "handlers.py").write_text(
        "from supervisor import handler\n"
        "@handler('events:x', group='g')\n"
        "def handle(fields: dict[str, str]) -> None: ...\n"
    )
    assert data(run("streams", "--json", cwd=tmp_path, redis_url=redis_server.url))[0]["groups"][0]["lag"] == 3


async def test_messages_of_a_foreign_consumer_are_named(every_server, tmp_path: Path) -> None:
    async with every_server.client() as client:
        await fill(client, 3)
        await client.xgroup_create(STREAM, GROUP, "0")
        ids = await deliver(client, 2, "script-7")
        await deliver(client, 1, "host:0")
        await client.hset(POOLS_KEY, "host", 1)
        found = {one.id: one.foreign for one in await inspect.pending(client, STREAM, GROUP, 10)}
        assert found == {"1-0": True, "2-0": True, "3-0": False}
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "handlers.py").write_text(
        "from supervisor import handler\n"
        f"@handler({STREAM!r}, group={GROUP!r})\nasync def f(message: dict[str, str]) -> None: ...\n"
    )
    url = every_server.url
    for words in (("pending", STREAM, GROUP), ("explain", ids[0].decode(), STREAM), ("doctor",)):
        done = run(*words, cwd=tmp_path, redis_url=url)
        text = done.stdout + done.stderr
        assert "script-7" in text and "no pool" in text and "claim_foreign_after_s = 0" in text, text
    env = {"SUPERVISOR_CONSUMER__CLAIM_FOREIGN_AFTER_S": "60"}
    text = run("pending", STREAM, GROUP, cwd=tmp_path, redis_url=url, env=env).stderr
    assert "for 60 s" in text


def test_one_wrong_key_hides_no_other_stream(tmp_path: Path, redis_server) -> None:
    handlers = "from supervisor import handler\n"
    for name in ("a", "b"):
        handlers += f"\n@handler({name!r}, group='g')\ndef of_{name}(fields: dict[str, str]) -> None: ...\n"
    (tmp_path / "handlers.py").write_text(handlers)
    with redis_server.sync() as redis:
        redis.set("a", "text")
        entry = redis.xadd("b", {"n": 1}).decode()
        shown = run("streams", "--json", cwd=tmp_path, redis_url=redis_server.url)
        assert (shown.returncode, [one["stream"] for one in data(shown)]) == (1, ["b"])
        told = run("explain", entry, cwd=tmp_path, redis_url=redis_server.url)
        assert told.returncode == 0 and told.stdout.startswith(f"b {entry}: ")
        for done in (shown, told):
            assert done.stderr.startswith("warning: a can't be read: WRONGTYPE ") and done.stderr.count("\n") == 1
        redis.set("b", "text")
        for words in (["streams"], ["explain", entry], ["streams", "a"], ["explain", entry, "a"]):
            done = run(*words, cwd=tmp_path, redis_url=redis_server.url)
            assert (done.returncode, done.stdout) == (1, "") and "error: Redis refused: WRONGTYPE" in done.stderr
