"""A handler whose dependency is away: its messages wait, are not given up, and all are done when it is back."""

import asyncio
from typing import Any

import pytest

from supervisor import Message, handler
from supervisor.core import circuit
from supervisor.keys import dead_key
from supervisor.shared_state import SlotField
from tests.redis.worker import GROUP, STREAM, pending, working
from tests.support.waiting import eventually_async

MESSAGES = 300


@pytest.mark.parametrize("kind", ["async", "thread", "batch"])
async def test_an_outage_of_a_dependency_costs_no_message(
    kind: str, redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit, "OPENS_AFTER_S", 0.3)
    monkeypatch.setattr(circuit, "PROBE_MAX_S", 1.0)
    away, calls, done = True, 0, set()
    options: dict[str, Any] = {"group": GROUP, "retry_base_s": 0.05, "retry_max_s": 0.05, "max_deliveries": 40}

    def work(number: str) -> None:
        nonlocal calls
        calls += 1
        if away:
            raise ConnectionError("the database is away")
        done.add(number)

    @handler(STREAM, **options)
    async def handle(message: Message) -> None:
        work(message.fields["n"])

    @handler(STREAM, **options)
    def in_thread(message: Message) -> None:
        work(message.fields["n"])

    @handler(STREAM, **options, batch_size=10)
    async def in_batches(messages: list[Message]) -> None:
        for message in messages:
            work(message.fields["n"])

    function = {"async": handle, "thread": in_thread, "batch": in_batches}[kind]
    for n in range(MESSAGES):
        await redis.xadd(STREAM, {"n": n})
    async with working(redis_url, function) as worker:
        await eventually_async(lambda: not worker.runtime.consumers[0].circuit.closed)
        await eventually_async(lambda: worker.runtime.consumers[0].executor.started == 0)
        before = calls
        await asyncio.sleep(1.5)
        assert calls - before < 30, "attempts are used up"
        worker.runtime.report()
        assert worker.shared.get(SlotField.CIRCUITS_OPEN) == 1
        away = False
        await eventually_async(lambda: len(done) == MESSAGES)
        await eventually_async(lambda: worker.runtime.consumers[0].circuit.closed)
    assert await redis.xlen(dead_key(STREAM, GROUP)) == 0
    assert await pending(redis) == 0


async def test_a_drain_with_an_open_circuit_ends_and_loses_nothing(
    redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit, "OPENS_AFTER_S", 0.3)

    @handler(STREAM, group=GROUP, retry_base_s=0.1)
    async def handle(message: Message) -> None:
        raise ConnectionError("the database is away")

    for n in range(MESSAGES):
        await redis.xadd(STREAM, {"n": n})
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: not worker.runtime.consumers[0].circuit.closed)
        await asyncio.wait_for(worker.runtime.drain(), 30)
        await asyncio.wait_for(asyncio.shield(worker.task), 30)
    (group,) = await redis.xinfo_groups(STREAM)
    assert group["pending"] + group["lag"] == MESSAGES


async def test_messages_that_are_refused_open_nothing(redis: Any, redis_url: str) -> None:
    from supervisor import Reject

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        raise Reject("not mine")

    for n in range(MESSAGES):
        await redis.xadd(STREAM, {"n": n})
    async with working(redis_url, handle) as worker:

        async def all_refused() -> bool:
            return bool(await redis.xlen(dead_key(STREAM, GROUP)) == MESSAGES)

        await eventually_async(all_refused)
        assert worker.runtime.consumers[0].circuit.closed
