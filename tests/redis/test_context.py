"""`context().message` is the message that is handled, in the handler, its tasks and its threads."""

import asyncio
import threading
from typing import Any

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from supervisor import Message, UsageError, context, handler
from supervisor.shared_state import SlotField
from tests.redis.worker import GROUP, STREAM, working
from tests.support.waiting import eventually_async


async def test_tasks_and_threads_of_a_handler_know_its_message(redis: Any, redis_url: str) -> None:
    seen: list[tuple[str, str]] = []

    async def task(message: Message) -> None:
        await asyncio.sleep(0.001)
        seen.append((message.id, context().message.id))

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        seen.append((message.id, context().message.id))
        await asyncio.gather(task(message), task(message))
        seen.append((message.id, await asyncio.to_thread(lambda: context().message.id)))

    @handler(STREAM, group="threads")
    def plain(message: Message) -> None:
        seen.append((message.id, context().message.id))

    for number in range(20):
        await redis.xadd(STREAM, {"number": number})
    async with working(redis_url, handle, plain) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 40)
    assert len(seen) == 20 * 5
    assert all(own == known for own, known in seen)


async def test_threads_without_context_variables_know_the_worker_while_it_runs(redis: Any, redis_url: str) -> None:
    seen: list[str] = []

    def note() -> None:
        seen.append(context().worker)

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        await asyncio.get_running_loop().run_in_executor(None, note)
        thread = threading.Thread(target=note)
        thread.start()
        thread.join()

    await redis.xadd(STREAM, {"number": 1})
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 1)
    assert len(seen) == 2
    assert len(set(seen)) == 1
    with pytest.raises(UsageError):
        await asyncio.get_running_loop().run_in_executor(None, note)


async def test_a_thread_beyond_its_time_limit_still_has_its_own_message(redis: Any, redis_url: str) -> None:
    gate, seen = threading.Event(), list[tuple[str, str]]()

    @handler(STREAM, group=GROUP, timeout_s=0.1, max_deliveries=1)
    def plain(message: Message) -> None:
        if message.fields["number"] == "1":
            gate.wait(30)
            seen.append((message.id, context().message.id))

    await redis.xadd(STREAM, {"number": 1})
    async with working(redis_url, plain) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1)
        await redis.xadd(STREAM, {"number": 2})
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 1)
        gate.set()
        await eventually_async(lambda: seen)
    assert all(own == known for own, known in seen)


async def test_a_batch_has_no_single_message(redis: Any, redis_url: str) -> None:
    raised: list[str] = []

    @handler(STREAM, group=GROUP)
    async def batch(messages: list[Message]) -> None:
        if len(messages) > 1:
            with pytest.raises(UsageError) as error:
                _ = context().message
            raised.append(str(error.value))

    async with redis.pipeline(transaction=True) as pipe:
        for number in range(200):
            pipe.xadd(STREAM, {"number": number})
        await pipe.execute()
    async with working(redis_url, batch) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 200)
    assert (
        raised[0] == "context().message: a batch has several messages; take them as a second parameter: list[Message]"
    )


async def test_a_connection_that_can_not_be_closed_ends_no_worker(redis: Any, redis_url: str) -> None:
    class Silent:
        """A client whose server does not answer the end of TLS."""

        async def aclose(self) -> None:
            raise RedisTimeoutError("Timed out closing connection after 5.0")

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None: ...

    async with working(redis_url, handle) as worker:
        worker.runtime.context._once(("redis", asyncio.get_running_loop()), Silent)
