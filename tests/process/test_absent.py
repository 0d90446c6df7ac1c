"""Messages of consumers whose owner is gone: slots that a pool no longer has, and hosts that died."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from supervisor.names import host_key
from tests.process.test_pool import RECORD, consumers, seen
from tests.support.pool import Pool
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


def test_a_smaller_pool_takes_over_what_the_larger_one_left(start_pool: StartPool, redis_server: Any) -> None:
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


def test_the_messages_of_a_dead_host_run_elsewhere_within_15_s(start_pool: StartPool, redis_server: Any) -> None:
    dying = start_pool(HOLDING, redis_url=redis_server.url, workers=2, config='[pool]\nhost = "dying"\n')
    redis = redis_server.sync()
    publish(redis, 40)
    eventually(lambda: sum(seen(dying).values()) == 40)
    redis.xgroup_createconsumer("events", "workers", "stranger:0")  # named as ours, but never seen to live
    other = start_pool(HOLDING, redis_url=redis_server.url, workers=2, config='[pool]\nhost = "other"\n')
    assert held(redis)["dying:0"] + held(redis)["dying:1"] == 40
    (other.folder / "release").touch()
    os.kill(dying.pid, signal.SIGKILL)
    dying.wait()
    dead_s = time.monotonic()
    assert redis.exists(host_key("dying"))
    eventually(lambda: sum(seen(other).values()) == 80, 20, 0.1)
    assert time.monotonic() - dead_s < 15
    assert set(seen(other).values()) == {1}, "each was taken once"
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    eventually(lambda: set(held(redis)) == {"other:0", "other:1", "stranger:0"})
