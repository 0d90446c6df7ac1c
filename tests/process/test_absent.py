"""Messages of consumers whose owner is gone: slots that a pool no longer has, and hosts that died."""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.keys import host_key
from tests.http.service import browser
from tests.process.test_pool import RECORD, consumers, seen
from tests.support.faults import scaled
from tests.support.pool import Pool, kill_all
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]

HOLDING = (
    RECORD
    + """
    import asyncio, pathlib
    @handler("events", group="workers", timeout_s=600)
    async def handle(message: Message) -> None:
        record("call-" + message.fields["n"])
        while not pathlib.Path("release").exists():
            await asyncio.sleep(0.02)
        record("end-" + message.fields["n"])
"""
)


def publish(redis: Any, count: int) -> None:
    for n in range(count):
        redis.xadd("events", {"n": n})


def held(redis: Any) -> dict[str, int]:
    return {row["name"].decode(): row["pending"] for row in consumers(redis)}


@pytest.mark.long
def test_a_smaller_pool_takes_over_the_messages_of_a_larger_one(start_pool: StartPool, redis_server: Any) -> None:
    config = '[pool]\nhost = "here"\n'
    pool = start_pool(HOLDING, redis_url=redis_server.url, workers=4, config=config)
    redis = redis_server.sync()
    publish(redis, 80)
    eventually(lambda: sum(seen(pool).values()) == 80)
    os.kill(pool.pid, signal.SIGKILL)
    pool.wait()
    assert len(held(redis)) == 4 and sum(held(redis).values()) == 80
    pool.start(workers=1)
    eventually(lambda: held(redis) == {"here:0": 80})
    (pool.folder / "release").touch()
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert {name for name in seen(pool) if name.startswith("end")} == {f"end-{n}" for n in range(80)}


def host(start_pool: StartPool, name: str, url: str, **options: Any) -> Pool:
    return start_pool(HOLDING, redis_url=url, workers=2, config=f'[pool]\nhost = "{name}"\n', **options)


@pytest.mark.long
def test_the_messages_of_a_dead_host_run_elsewhere_within_15_s(start_pool: StartPool, redis_server: Any) -> None:
    dying = host(start_pool, "dying", redis_server.url)
    redis = redis_server.sync()
    publish(redis, 40)
    eventually(lambda: sum(seen(dying).values()) == 40)
    redis.xgroup_createconsumer("events", "workers", "stranger:0")  # like a pool's, but no such pool was ever seen
    others = [host(start_pool, name, redis_server.url) for name in ("first", "second")]
    assert held(redis)["dying:0"] + held(redis)["dying:1"] == 40
    for other in others:
        (other.folder / "release").touch()
    kill_whole(dying)
    assert redis.exists(host_key("dying")), "nobody has given it back"
    eventually(lambda: not redis.exists(host_key("dying")), 60)
    gone_s = time.monotonic()

    def done() -> Counter[str]:
        return sum((seen(other) for other in others), Counter())

    eventually(lambda: done().total() == 80, 40, 0.05)
    took_s = time.monotonic() - gone_s
    print(f"a whole host killed: its 40 messages were done elsewhere {took_s:.1f} s after its lease of 10 s")
    assert took_s * 1000 < scaled(5000, max(other.started_ms for other in others))
    assert done() == {f"{what}-{n}": 1 for n in range(40) for what in ("call", "end")}, "each was taken once"
    eventually(lambda: sum(line["messages"] for other in others for line in other.events("consumer reaped")) == 40)
    assert seen(dying) == {f"call-{n}": 1 for n in range(40)}, "it was killed with all of them in hand"
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    eventually(lambda: set(held(redis)) == {"first:0", "first:1", "second:0", "second:1", "stranger:0"})


def kill_whole(pool: Pool) -> None:
    """Kill everything at once, as a power loss does."""
    processes = pool.processes()
    assert len(processes) == 4, "arbiter, keeper and two workers"
    kill_all(processes)
    pool.wait()
    eventually(lambda: not pool.processes())
    pool.paths.control.unlink()


@pytest.mark.long
def test_late_acks_of_a_host_thought_dead_are_counted(start_pool: StartPool, redis_server: Any) -> None:
    frozen = host(start_pool, "frozen", redis_server.url, api=True)
    redis = redis_server.sync()
    publish(redis, 10)
    eventually(lambda: sum(seen(frozen).values()) == 10)
    other = host(start_pool, "other", redis_server.url)
    (other.folder / "release").touch()
    processes = frozen.processes()
    for process in processes:
        process.suspend()
    try:
        eventually(lambda: seen(other).total() == 20, 60, 0.1)
        assert not redis.exists(host_key("frozen"))
        eventually(lambda: set(held(redis)) == {"other:0", "other:1"})
        assert seen(frozen).total() == 10
    finally:
        for process in processes:
            process.resume()
    pids = frozen.pids()
    eventually(lambda: redis.exists(host_key("frozen")), what="it has its lease again")
    (frozen.folder / "release").touch()
    eventually(lambda: sum(worker["lost_claim"] for worker in frozen.ask("status")["workers"]) == 10)
    assert frozen.pids() == pids, "and nobody was killed for the time that it was frozen"
    assert "late      10 acks of messages that were settled elsewhere (lost_claim)" in frozen.command("status").stdout
    with browser(frozen.base_url) as web:
        series = r'^supervisor_messages_settled_total\{.*outcome="lost_claim"\} (\d+)$'

        def counted() -> int:
            return sum(map(int, re.findall(series, web.get("/metrics").text, re.MULTILINE)))

        eventually(lambda: counted() == 10)
    # It goes on as before.
    redis.xadd("events", {"n": "later"})
    eventually(lambda: seen(frozen)["end-later"] + seen(other)["end-later"] == 1)
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)


def test_messages_of_a_foreign_consumer_are_claimed_if_configured(start_pool: StartPool, redis_server: Any) -> None:
    redis = redis_server.sync()
    redis.xgroup_create("events", "workers", "0", mkstream=True)
    publish(redis, 3)
    redis.xreadgroup("workers", "script", {"events": ">"})
    config = '[pool]\nhost = "here"\n[consumer]\nclaim_foreign_after_s = 2\n'
    pool = start_pool(HOLDING, redis_url=redis_server.url, workers=1, config=config)
    (pool.folder / "release").touch()
    eventually(lambda: seen(pool) == {f"{what}-{n}": 1 for n in range(3) for what in ("call", "end")}, 20)
    eventually(lambda: set(held(redis)) == {"here:0"})
    eventually(lambda: [line["foreign"] for line in pool.events("consumer reaped")] == [True])
