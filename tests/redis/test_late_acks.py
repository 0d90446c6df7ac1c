"""Acks of messages that somebody else has settled meanwhile are counted, whatever had become of them before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from supervisor import Message, Retry, handler
from supervisor.board import Word
from supervisor.names import retries_key
from tests.redis.test_worker import GROUP, STREAM, working
from tests.support.waiting import eventually_async


@pytest.mark.parametrize("failures", [0, 1])
async def test_a_late_ack_is_counted_once(every_server: Any, failures: int) -> None:
    running, go = asyncio.Event(), asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        if message.deliveries <= failures:
            raise Retry(after_s=0)
        running.set()
        await go.wait()

    async with every_server.client() as redis, working(every_server.url, handle) as worker:
        entry = await redis.xadd(STREAM, {"n": 1})
        await asyncio.wait_for(running.wait(), 10)
        await redis.xack(STREAM, GROUP, entry)
        go.set()
        await eventually_async(lambda: worker.board.get(Word.LOST_CLAIM) == 1)
        assert await redis.hlen(retries_key(STREAM, GROUP)) == 0
        # What is settled in time is not.
        await redis.xadd(STREAM, {"n": 2})
        await eventually_async(lambda: worker.board.get(Word.DONE) == 2)
        await worker.runtime.settler.flush()
        assert worker.board.get(Word.LOST_CLAIM) == 1
