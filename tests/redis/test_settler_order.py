"""What Redis has refused and takes later never undoes what was decided since, on real servers."""

import asyncio
from typing import Any

from redis.asyncio import Redis

from supervisor.broker.command_connection import CommandConnection
from supervisor.keys import retries_key
from supervisor.shared_state import SharedSlot, SharedState
from supervisor.worker.run_control import RunControl
from supervisor.worker.settler import Settler
from supervisor.worker.source import Source, sources_of
from tests.redis.worker import GROUP, STREAM, Faults
from tests.support.waiting import eventually_async

RECORDS = retries_key(STREAM, GROUP)


def source_of(slot: SharedSlot) -> Source:
    """The handler's own stream."""
    sources = sources_of(STREAM, GROUP, slot)
    assert sources is not None
    return sources[0]


async def test_a_record_that_was_refused_replaces_no_later_one(redis_url: str, redis: Redis) -> None:
    told: list[Any] = []
    wire = CommandConnection(redis_url)
    slot = SharedState().slot(0)
    source = source_of(slot)
    settler = Settler(wire, slot, Faults(told), RunControl())
    running = asyncio.create_task(settler.run())
    try:
        await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        entry: bytes = await redis.xadd(STREAM, {"n": 1})
        await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})
        await redis.set(RECORDS, "of another type")
        settler.retry_later(source, entry, 1, 1000, 1000)
        await eventually_async(lambda: len(told) == 3)  # from now on it waits for longer than the next one will
        settler.retry_later(source, entry, 2, 2000, 1000)
        await eventually_async(lambda: len(told) == 4)
        await redis.delete(RECORDS)
        await eventually_async(lambda: not settler._refused)
        await settler.flush()
        assert await redis.hget(RECORDS, entry) == b"2:2000:1000"
    finally:
        running.cancel()
        await wire.close()


async def test_what_is_decided_and_not_sent_counts_as_backlog(redis_url: str) -> None:
    slot = SharedState().slot(0)
    source = source_of(slot)
    settler = Settler(CommandConnection(redis_url), slot, Faults([]), RunControl())
    settler.ack_recorded(source, b"1-1", b"2-2")
    settler.dead_letter(source, b"3-3", ["id", "3-3"])
    assert settler.backlog == 3
