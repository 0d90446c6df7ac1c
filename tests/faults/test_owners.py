"""Messages whose owner disappears: a pool that shrinks and grows, a dead host, a deleted consumer."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from supervisor import Message, handler
from supervisor.broker.scripts import DELETE_CONSUMER
from supervisor.handling.loader import specs_of
from supervisor.keeper.lease import LEASE_MS
from supervisor.keeper.reaper import Reaper
from supervisor.keys import host_key
from supervisor.log import FaultLog
from supervisor.settings.model import Settings
from supervisor.shared_state import HeaderField, SharedState, SlotField
from tests.support.faults import Bounds
from tests.support.pool import Pool
from tests.support.recording import RECORD, seen
from tests.support.waiting import eventually, next_ms

StartPool = Callable[..., Pool]


@handler("events", group="workers")
async def handle(message: Message) -> None: ...


def held(redis: Any) -> dict[str, int]:
    """Return consumer -> number of its pending messages."""
    return {row["name"].decode(): row["pending"] for row in redis.xinfo_consumers("events", "workers")}


def test_53_scale_8_to_2_to_8(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # A tenth of the messages waits for a retry in the worker that first had them.
    pool = start_pool(
        RECORD
        + """
    import asyncio
    @handler("events", group="workers", retry_base_s=1, batch_size=5, concurrency=5)
    async def handle(message: Message) -> None:
        n = message.fields["n"]
        record(n)
        await asyncio.sleep(0.002)
        if n.endswith("0") and message.deliveries == 1:
            raise ValueError("once")
        record("done")
""",
        redis_url=redis_server.url,
        workers=8,
        config='[pool]\nhost = "here"\n',
    )
    redis, count, down, up = redis_server.sync(), 0, [], []
    for _ in range(2):
        for workers, times in ((2, down), (8, up)):
            for _ in range(1000):
                redis.xadd("events", {"n": count})
                count += 1
            if workers == 2:
                assert sum(count for name, count in held(redis).items() if name > "here:1"), "they have to hand over"
            began_s = time.monotonic()
            pool.ask("scale", n=workers)
            names = {f"here:{slot}" for slot in range(workers)}
            eventually(lambda names=names: sorted(pool.pids()) == list(range(len(names))), 60)
            eventually(lambda names=names: set(held(redis)) <= names, 60, what="none who has left holds anything")
            times.append((time.monotonic() - began_s) * 1000)
    bound.check("8 to 2 workers, until the six have left and hold nothing", down, 4000)
    bound.check("2 to 8 workers, until there are eight", up, 4000)
    status = pool.wait_ready()
    assert len(status["workers"]) == 8
    eventually(lambda: seen(pool)["done"] == count, 60, 0.1)
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0, what="no pending is left behind")
    counts = seen(pool)
    del counts["done"]
    assert counts == {str(n): 1 + (n % 10 == 0) for n in range(count)}, "each ran once, and the retries once more"
    assert {line["reason"] for line in pool.events("worker exited")} == {"drained"}
    assert [line["workers"] for line in pool.events("scaled")] == [2, 8, 2, 8]


HOLDING = (
    RECORD
    + """
    import asyncio
    @handler("events", group="workers", timeout_s=600)
    async def handle(message: Message) -> None:
        record("call-" + message.fields["n"])
        while not os.path.exists("release"):
            await asyncio.sleep(0.02)
        record("end-" + message.fields["n"])
"""
)


@pytest.mark.long
def test_54_dead_host_lease_expires(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # Two living hosts, so two reapers; and one that dies with its pending messages.
    def host(name: str) -> Pool:
        return start_pool(HOLDING, redis_url=redis_server.url, workers=2, config=f'[pool]\nhost = "{name}"\n')

    redis, dying = redis_server.sync(), host("dying")
    for n in range(40):
        redis.xadd("events", {"n": n})
    eventually(lambda: sum(seen(dying).values()) == 40)
    others = [host("first"), host("second")]
    for other in others:
        (other.folder / "release").touch()
    dying.send(signal.SIGKILL)
    dead_s = time.monotonic()
    dying.wait()
    assert redis.pttl(host_key("dying")) > LEASE_MS / 2 and held(redis)["dying:0"] + held(redis)["dying:1"] == 40
    eventually(lambda: sum(count for other in others for count in seen(other).values()) == 80, 60, 0.1)
    bound.check("kill -9 of a host until another has done its 40 messages", time.monotonic() - dead_s, 15, "s")
    ends = sum((seen(other) for other in others), Counter())
    assert ends == {f"{what}-{n}": 1 for n in range(40) for what in ("call", "end")}, "each was claimed once"
    eventually(lambda: set(held(redis)) == {"first:0", "first:1", "second:0", "second:1"})

    def took() -> list[list[int]]:
        return [[line["messages"] for line in other.events("consumer reaped") if line["messages"]] for other in others]

    eventually(lambda: sorted(map(len, took())) == [0, 2], what="one of the two reaped, and each consumer once")
    assert sum(map(sum, took())) == 40
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert not redis.exists(host_key("dying"))
    dying.paths.control.unlink()  # nobody else does


@pytest.fixture
def shared() -> Iterator[SharedState]:
    made = SharedState()
    made.set(HeaderField.WORKERS, 1)
    made.slot(0).set(SlotField.READY_NS, 1)
    yield made
    os.close(made.fd)


class Log:
    """A log that is not read."""

    def info(self, *_: Any, **__: Any) -> None: ...


async def read(redis: Redis, consumer: str) -> Any:
    """Read like a worker that was slow."""
    return await redis.xreadgroup("workers", consumer, {"events": ">"})


async def add_and_read(redis: Redis, consumer: str) -> None:
    await redis.xadd("events", {"n": "late"})
    await read(redis, consumer)


async def pending(redis: Redis) -> dict[bytes, int]:
    summary = await redis.xpending("events", "workers")
    return {row["name"]: row["pending"] for row in summary["consumers"]}


async def test_55_delconsumer_race(every_server: Any, shared: SharedState, monkeypatch: pytest.MonkeyPatch) -> None:
    async with every_server.client() as redis, every_server.client() as late:
        await redis.xgroup_create("events", "workers", "0", mkstream=True)
        # The race: a consumer is checked, gets a message, and is deleted. That message then has no owner.
        await redis.xgroup_createconsumer("events", "workers", "pool:6")
        assert await pending(redis) == {}
        await add_and_read(late, "pool:6")
        assert await redis.xgroup_delconsumer("events", "workers", "pool:6") == 1
        assert await pending(redis) == {} and await read(redis, "x") == []
        # The reaper, with a worker that reads just before the reaper deletes.
        for _ in range(3):
            await add_and_read(late, "pool:7")
        await next_ms(redis)
        plain = redis.eval

        async def interrupted(*words: Any) -> Any:
            if words[0] == DELETE_CONSUMER.text:
                await add_and_read(late, "pool:7")
            return await plain(*words)

        monkeypatch.setattr(redis, "eval", interrupted)
        reaper = Reaper(redis, "pool", "token", shared, specs_of(Settings(), [handle]), FaultLog(Log()))
        await reaper.look()
        assert await pending(redis) == {b"pool:0": 3, b"pool:7": 1}, "the slow worker still holds its message"
        monkeypatch.undo()
        await next_ms(redis)  # what is delivered in the millisecond of a look is left for the next one
        await reaper.look()
        assert await pending(redis) == {b"pool:0": 4}
        names = {row["name"] for row in await redis.xinfo_consumers("events", "workers")}
        assert b"pool:7" not in names and shared.slot(0).get(SlotField.RESCAN_PENDING) == 2


async def test_55_delconsumer_race_of_many(every_server: Any, bound: Bounds) -> None:
    # In either order, a message that was read stays pending.
    rounds, kept = 400, 0
    async with every_server.client() as redis, every_server.client() as late:
        await redis.xgroup_create("events", "workers", "0", mkstream=True)
        for n in range(rounds):
            name = f"pool:{n}"
            await redis.xgroup_createconsumer("events", "workers", name)
            await redis.xadd("events", {"n": n})
            racers = [read(late, name), redis.eval(DELETE_CONSUMER.text, 1, "events", "workers", name)]
            answers = await asyncio.gather(*(racers if n % 2 else reversed(racers)))
            kept += answers[n % 2] == -1
        total = (await redis.xpending("events", "workers"))["pending"]
    assert 0 < kept < rounds, "both orders occurred"
    bound.check(f"messages lost in {rounds} races", rounds - total, 0, "")
