"""How messages reach their handlers: batches of one, batches that fail, and the concurrency that is left."""

import asyncio
import time
from contextvars import ContextVar
from typing import Any

import pytest

from supervisor import BatchError, Message, handler
from supervisor.keys import dead_key
from supervisor.shared_state import SlotField
from tests.redis.worker import GROUP, STREAM, pending, working
from tests.support.waiting import eventually_async


async def test_a_batch_of_one_is_a_list_too(redis: Any, redis_url: str) -> None:
    seen: list[object] = []

    @handler(STREAM, group=GROUP, batch_size=1)
    async def batch(messages: list[Message]) -> None:
        seen.append(messages)

    await redis.xadd(STREAM, {"n": 1})
    async with working(redis_url, batch):
        await eventually_async(lambda: seen)
    assert isinstance(seen[0], list)
    assert [message.fields for message in seen[0]] == [{"n": "1"}]


@pytest.mark.parametrize("value", [None, "odd"])
async def test_a_batch_error_without_an_exception_loses_no_message(redis: Any, redis_url: str, value: Any) -> None:
    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def batch(messages: list[Message]) -> None:
        raise BatchError(dict.fromkeys([message.id for message in messages], value))

    entry = await redis.xadd(STREAM, {"n": 1})
    async with working(redis_url, batch) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) + worker.shared.get(SlotField.DONE) == 1)
    ((_, letter),) = await redis.xrange(dead_key(STREAM, GROUP))
    assert letter[b"id"] == entry
    assert b"UsageError" in letter[b"error"]
    assert await pending(redis) == 0


async def test_adopted_messages_that_wait_do_not_keep_others_from_running(redis: Any, redis_url: str) -> None:
    gate = asyncio.Event()
    seen: list[str] = []

    @handler(STREAM, group=GROUP, concurrency=20)
    async def handle(message: Message) -> None:
        seen.append(message.fields["n"])
        if message.fields["n"] != "quick":
            await gate.wait()

    async with working(redis_url, handle, consumer={"hold_ms": 60_000}) as worker:
        try:
            for _ in range(3):  # so the worker knows that they are quick
                before = len(seen)
                await redis.xadd(STREAM, {"n": "quick"})
                await eventually_async(lambda: worker.shared.get(SlotField.DONE) > before)  # noqa: B023
            await redis.xadd(STREAM, {"n": "first"})
            await eventually_async(lambda: "first" in seen)
            async with redis.pipeline(transaction=True) as pipe:  # the worker's own read gets none of them
                for _ in range(8):
                    pipe.xadd(STREAM, {"n": "adopted"})
                pipe.xreadgroup(GROUP, "host:0", {STREAM: ">"}, count=8)
                await pipe.execute()
            worker.runtime.rescan()
            await eventually_async(lambda: seen.count("adopted") == 8)
            await redis.xadd(STREAM, {"n": "last"})
            await eventually_async(lambda: "last" in seen)
        finally:
            gate.set()


@pytest.mark.parametrize("kind", ["message", "batch"])
async def test_context_variables_of_one_message_are_not_seen_by_the_next(redis: Any, redis_url: str, kind: str) -> None:
    left_behind: ContextVar[str] = ContextVar("left_behind", default="")
    seen: list[str] = []

    async def one(message: Message) -> None:
        seen.append(left_behind.get())
        left_behind.set(message.id)

    async def batch(messages: list[Message]) -> None:
        for message in messages:
            await one(message)

    options = {"group": GROUP, "concurrency": 2, "batch_size": 10 if kind == "message" else 1}
    for n in range(20):
        await redis.xadd(STREAM, {"n": n})
    async with working(redis_url, handler(STREAM, **options)(one if kind == "message" else batch)):
        await eventually_async(lambda: len(seen) == 20)
    assert set(seen) == {""}


async def test_a_handler_that_cancels_its_own_task_leaves_no_mark(redis: Any, redis_url: str) -> None:
    """It has returned by then: the cancellation ends the runner that takes a breath."""

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        time.sleep(0.02)  # so that the runner gives the event loop a turn
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    await redis.xadd(STREAM, {"n": 1})
    async with working(redis_url, handle) as worker:
        row = worker.shared.consumer(STREAM, GROUP)
        assert row is not None
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 1)
        await eventually_async(lambda: row.started() == (0, 0))


@pytest.mark.parametrize("how", ["raised", "wrapped", "grouped", "thread"])
async def test_a_message_without_text_condemns_no_other_of_its_batch(redis: Any, redis_url: str, how: str) -> None:
    handled: list[str] = []

    def look(messages: list[Message]) -> None:
        found = [message.fields["n"] for message in messages]
        assert all(message.published_at for message in messages)
        handled.extend(found)

    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def batch(messages: list[Message]) -> None:
        try:
            look(messages)
        except Exception as error:
            if how == "wrapped":
                raise RuntimeError("can't look") from error
            if how == "grouped":
                raise ExceptionGroup("can't look", [error]) from None
            raise

    plain = handler(STREAM, group=GROUP, max_deliveries=1)(look)
    for n in range(27):
        await redis.xadd(STREAM, {"n": b"\xff" if n in (5, 9) else n})
    await redis.xadd(STREAM, {"n": 99}, id="18446744073709551615-1")
    async with working(redis_url, plain if how == "thread" else batch) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) + worker.shared.get(SlotField.DONE) == 28)
        assert worker.shared.get(SlotField.DEAD) == 2 and not worker.shared.get(SlotField.FAILED)
    assert sorted(map(int, handled)) == [*(n for n in range(27) if n not in (5, 9)), 99]
    letters = [letter for _, letter in await redis.xrange(dead_key(STREAM, GROUP))]
    assert [letter[b"field:n"] for letter in letters] == [b"\xff"] * 2
    assert all(b"field 'n' is not UTF-8" in letter[b"reason"] for letter in letters)
    assert await pending(redis) == 0


async def test_a_raw_message_may_have_any_bytes(redis: Any, redis_url: str) -> None:
    seen: list[dict[bytes, bytes]] = []

    @handler(STREAM, group=GROUP)
    async def batch(messages: list[Message]) -> None:
        seen.extend(message.raw for message in messages)

    await redis.xadd(STREAM, {"n": b"\xff"})
    async with working(redis_url, batch):
        await eventually_async(lambda: seen)
    assert seen == [{b"n": b"\xff"}]
