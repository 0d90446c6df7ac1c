"""What Redis has refused and takes later never undoes what was decided since, on real servers."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis

from supervisor.broker.wire import Wire
from supervisor.keys import retries_key
from supervisor.shared_state import SharedState
from supervisor.worker.settler import Keys, Settler
from tests.redis.test_worker import GROUP, STREAM, Faults
from tests.support.waiting import eventually_async

KEYS, RECORDS = Keys.of(STREAM, GROUP), retries_key(STREAM, GROUP)


async def test_a_record_that_was_refused_replaces_no_later_one(redis_url: str, redis: Redis) -> None:
    told: list[Any] = []
    wire = Wire(redis_url)
    settler = Settler(wire, SharedState().slot(0), Faults(told))
    running = asyncio.create_task(settler.run())
    try:
        await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        entry: bytes = await redis.xadd(STREAM, {"n": 1})
        await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})
        await redis.set(RECORDS, "of another type")
        settler.retry_later(KEYS, entry, 1, 1000, 1000)
        await eventually_async(lambda: len(told) == 3)  # from now on it waits for longer than the next one will
        settler.retry_later(KEYS, entry, 2, 2000, 1000)
        await eventually_async(lambda: len(told) == 4)
        await redis.delete(RECORDS)
        await eventually_async(lambda: not settler._refused)
        await settler.flush()
        assert await redis.hget(RECORDS, entry) == b"2:2000:1000"
    finally:
        running.cancel()
        await wire.close()
