"""Acks of messages that another consumer has settled are counted, whatever had become of the messages before."""

import asyncio
from typing import Any

import pytest

from supervisor import Message, Retry, handler
from supervisor.keys import retries_key
from supervisor.shared_state import SlotField
from tests.redis.worker import GROUP, STREAM, working
from tests.support.waiting import eventually_async


@pytest.mark.parametrize("failures", [0, 1])
async def test_a_late_ack_is_counted_once(every_server: Any, failures: int) -> None:
    running, go = asyncio.Event(), asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        if message.deliveries <= failures:
            raise Retry(after_s=0)
        if message.fields["n"] == "late":
            running.set()
            await go.wait()

    async with every_server.client() as redis, working(every_server.url, handle) as worker:
        await redis.xadd(STREAM, {"n": "in time"})
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 1)
        entry = await redis.xadd(STREAM, {"n": "late"})
        await asyncio.wait_for(running.wait(), 30)
        await redis.xack(STREAM, GROUP, entry)
        go.set()
        await eventually_async(lambda: worker.shared.get(SlotField.LOST_CLAIM))
        # Acks are confirmed in order: that of the other was not counted.
        assert (worker.shared.get(SlotField.LOST_CLAIM), worker.shared.get(SlotField.DONE)) == (1, 2)
        assert await redis.hlen(retries_key(STREAM, GROUP)) == 0
