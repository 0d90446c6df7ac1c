"""Replays with real pools: whether the entry is still there or not, and whichever process dies."""

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.errors import EXIT_DRAIN
from supervisor.keys import REPLAY_CONSUMER, consumer_name, dead_key, host_key, replay_key
from tests.process.test_pool import RECORD, seen
from tests.support.pool import Pool, kill_all
from tests.support.recording import times_ns
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
DEAD, COPIES = dead_key("events", "mail"), replay_key("events", "mail")

#: A drain finishes what runs; what a pool was running when it died may run once more at most.
IMPATIENT = "[pool]\ndrain_s = 0.3\n[consumer]\nmax_crashes = 1\n"
#: Fails all until there is a file `mended`, then holds what it runs until there is a file `go`.
MENDED = (
    RECORD
    + """
    import asyncio, pathlib
    @handler("events", group="mail", max_deliveries=1, retry_base_s=0.1)
    async def mail(message: Message) -> None:
        if not pathlib.Path("mended").exists():
            raise ValueError("not yet")
        record(f"{message.id}={message.fields['n']}")
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.02)
        record(f"done-{message.fields['n']}")

    @handler("events", group="count")
    async def count(message: Message) -> None:
        record(f"count-{message.fields['n']}")
"""
)


def give_up(pool: Pool, redis: Any, count: int, *, trim: bool = True) -> list[str]:
    """Make dead letters of messages; then repair their handler and, with `trim`, delete their entries."""
    ids = [redis.xadd("events", {"n": n}).decode() for n in range(count)]
    eventually(lambda: redis.xlen(DEAD) == count and seen(pool)[f"count-{count - 1}"] == 1)
    if trim:
        redis.xtrim("events", maxlen=0, approximate=False)
        assert redis.xlen("events") == 0
    (pool.folder / "mended").touch()
    return ids


def replay(pool: Pool) -> None:
    done = pool.command("dead", "replay", "events", "mail", "--yes")
    assert done.returncode == 0, done.stderr


def group(pool: Pool) -> dict[str, Any]:
    return next(found for found in pool.status()["groups"] if found["group"] == "mail")


def test_trimmed_messages_run_again_in_their_group_alone(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(MENDED, redis_url=redis_server.url, workers=2)
    redis = redis_server.sync()
    ids = give_up(pool, redis, 50)
    replay(pool)
    eventually(lambda: all(seen(pool)[f"{entry}={n}"] == 1 for n, entry in enumerate(ids)), 30)
    figures = group(pool)
    assert (figures["pending"], figures["replaying"], figures["dead"]) == (50, 50, 0)
    listed = pool.command("pending", "events", "mail")
    assert all(entry in listed.stdout for entry in ids)
    assert {found["stream"] for found in pool.status()["groups"]} == {"events"}, "the replay stream is the pool's own"
    assert [found["stream"] for found in json.loads(pool.command("streams", "--json").stdout)] == ["events"]
    assert COPIES not in pool.command("doctor").stdout
    (pool.folder / "go").touch()
    eventually(lambda: all(seen(pool)[f"done-{n}"] == 1 for n in range(50)))
    eventually(lambda: not redis.xlen(COPIES), 40)
    assert all(seen(pool)[f"count-{n}"] == 1 for n in range(50)), "the other group got nothing again"
    assert (group(pool)["pending"], redis.xlen(DEAD)) == (0, 0)


def test_a_worker_that_is_killed_with_a_copy_in_hand_loses_nothing(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(MENDED, redis_url=redis_server.url, workers=2)
    redis = redis_server.sync()
    ids = give_up(pool, redis, 3)
    replay(pool)
    eventually(lambda: all(seen(pool)[f"{entry}={n}"] == 1 for n, entry in enumerate(ids)), 30)
    killed = {int(path.suffix[1:]) for path in pool.folder.glob("seen.*") if "=" in path.read_text()}
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    (pool.folder / "go").touch()
    eventually(lambda: all(seen(pool)[f"done-{n}"] == 1 for n in range(3)), 30)
    eventually(lambda: not redis.xlen(COPIES), 40)
    assert killed and all(seen(pool)[f"{entry}={n}"] == 2 for n, entry in enumerate(ids)), "each ran twice"
    assert redis.xlen(DEAD) == 0 and not killed & set(pool.pids().values())


def test_a_copy_that_kills_harms_no_other_and_is_the_only_letter(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(
        RECORD
        + """
    import pathlib
    @handler("events", group="mail", max_deliveries=1)
    async def mail(message: Message) -> None:
        if not pathlib.Path("mended").exists():
            raise ValueError("not yet")
        record(f"call-{message.fields['n']}")
        if message.fields["n"] == "3":
            os._exit(3)
        record(f"done-{message.fields['n']}")

    @handler("events", group="count")
    async def count(message: Message) -> None:
        record(f"count-{message.fields['n']}")
""",
        redis_url=redis_server.url,
        workers=2,
    )
    redis = redis_server.sync()
    ids = give_up(pool, redis, 6)
    replay(pool)
    eventually(lambda: redis.xlen(DEAD) == 1 and not redis.xlen(COPIES), 40)
    assert all(seen(pool)[f"done-{n}"] >= 1 for n in range(6) if n != 3)
    assert seen(pool)["call-3"] in (3, 4), "with others in hand it is not charged at once"
    ((_, letter),) = redis.xrange(DEAD)
    assert (letter[b"id"].decode(), letter[b"reason"]) == (ids[3], b"crashed the worker")


def test_without_a_pool_a_replay_waits_for_one(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(MENDED, redis_url=redis_server.url, workers=1)
    redis = redis_server.sync()
    [first, last] = give_up(pool, redis, 2, trim=False)
    assert pool.stop() == 0
    redis.xdel("events", first)
    replay(pool)
    waiting = next(found for found in pool.status()["groups"] if found["group"] == "mail")
    assert (waiting["pending"], waiting["replaying"], waiting["dead"]) == (2, 2, 0)
    listed = json.loads(pool.command("pending", "events", "mail", "--json").stdout)
    assert [(one["id"], one["consumer"]) for one in listed] == [(first, REPLAY_CONSUMER), (last, REPLAY_CONSUMER)]
    (pool.folder / "go").touch()
    pool.start()
    eventually(lambda: seen(pool)[f"{first}=0"] == seen(pool)[f"{last}=1"] == 1, 30)
    eventually(lambda: not redis.xlen(COPIES) and group(pool)["pending"] == 0, 30)


def test_a_burst_runs_them_too(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(MENDED, redis_url=redis_server.url, workers=1)
    redis = redis_server.sync()
    give_up(pool, redis, 40)
    assert pool.stop() == 0
    replay(pool)
    (pool.folder / "go").touch()
    burst = pool.command("start", "--burst", "--workers", "2", "--no-api", limit_s=60)
    assert burst.returncode == 0, burst.stderr
    assert all(seen(pool)[f"done-{n}"] == 1 for n in range(40)) and not redis.xlen(COPIES)


def test_a_burst_runs_what_is_still_in_its_stream_too(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(MENDED, redis_url=redis_server.url, workers=1)
    redis = redis_server.sync()
    give_up(pool, redis, 20, trim=False)
    assert pool.stop() == 0
    replay(pool)
    (pool.folder / "go").touch()
    burst = pool.command("start", "--burst", "--workers", "2", "--no-api", limit_s=60)
    assert burst.returncode == 0, burst.stderr
    assert all(seen(pool)[f"done-{n}"] == 1 for n in range(20)) and not redis.xlen(COPIES)


@pytest.mark.long
def test_a_copy_that_meets_many_stops_is_no_crash(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(MENDED, redis_url=redis_server.url, workers=1, config=IMPATIENT)
    redis = redis_server.sync()
    [entry] = give_up(pool, redis, 1)
    replay(pool)
    for times in range(1, 4):
        eventually(lambda times=times: seen(pool)[f"{entry}=0"] == times, 30)
        pool.send(signal.SIGTERM)
        assert pool.wait() == EXIT_DRAIN
        if times == 3:
            (pool.folder / "go").touch()
        pool.start()
    eventually(lambda: not redis.xlen(COPIES), 30)
    assert (seen(pool)["done-0"], redis.xlen(DEAD)) == (1, 0)


@pytest.mark.long
def test_copies_that_wait_for_a_retry_change_hands_when_the_pool_shrinks(
    start_pool: StartPool, redis_server: Any
) -> None:
    pool = start_pool(
        RECORD
        + """
    import pathlib
    from supervisor import Reject, Retry
    @handler("events", group="mail", max_deliveries=100)
    async def mail(message: Message) -> None:
        if not pathlib.Path("mended").exists():
            raise Reject("not yet")
        if not pathlib.Path("go").exists():
            raise Retry(after_s=2)
        record(f"done-{message.fields['n']}")

    @handler("events", group="count")
    async def count(message: Message) -> None:
        record(f"count-{message.fields['n']}")
""",
        redis_url=redis_server.url,
        workers=3,
    )
    redis = redis_server.sync()
    give_up(pool, redis, 12)
    replay(pool)
    eventually(lambda: group(pool)["retrying"] == 12, 30)
    assert pool.command("scale", "1").returncode == 0

    def holders() -> set[str]:
        return {row["name"].decode().rpartition(":")[2] for row in redis.xinfo_consumers(COPIES, "mail")}

    eventually(lambda: len(pool.pids()) == 1 and holders() == {"0"}, 40)
    assert redis.xpending(COPIES, "mail")["pending"] == 12
    (pool.folder / "go").touch()
    eventually(lambda: all(seen(pool)[f"done-{n}"] == 1 for n in range(12)), 40)
    eventually(lambda: not redis.xlen(COPIES), 40)


@pytest.mark.long
def test_copies_change_hands_when_their_host_dies(start_pool: StartPool, redis_server: Any) -> None:
    config = '[pool]\nhost = "{}"\n'
    dying = start_pool(MENDED, redis_url=redis_server.url, workers=3, config=config.format("dying"))
    redis = redis_server.sync()
    ids = give_up(dying, redis, 9)
    replay(dying)
    eventually(lambda: all(seen(dying)[f"{entry}={n}"] == 1 for n, entry in enumerate(ids)), 30)
    owners = {row["name"].decode() for row in redis.xinfo_consumers(COPIES, "mail") if row["pending"]}
    assert owners and all(owner.startswith("dying:") for owner in owners)
    heir = start_pool(MENDED, redis_url=redis_server.url, workers=1, config=config.format("heir"))
    (heir.folder / "mended").touch()
    (heir.folder / "go").touch()
    kill_all(dying.processes())
    eventually(lambda: not redis.exists(host_key("dying")), 30)
    eventually(lambda: all(seen(heir)[f"done-{n}"] == 1 for n in range(9)), 40)
    eventually(lambda: not redis.xlen(COPIES), 40)
    assert redis.xlen(DEAD) == 0
    assert consumer_name("heir", 0).encode() in {row["name"] for row in redis.xinfo_consumers("events", "mail")}
    assert len(times_ns(heir, "done-0")) == 1
    dying.paths.control.unlink(missing_ok=True)  # nobody else does
