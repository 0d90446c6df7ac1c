"""Middleware around handlers of each kind, in a worker's runtime: what it sees, and what becomes of the message."""

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from supervisor import BatchError, Message, Next, NextBatch, Reject, Retry, handler
from supervisor.handling.loader import specs_of
from supervisor.handling.middleware import compose
from supervisor.keys import dead_key
from supervisor.settings.model import Settings
from supervisor.shared_state import SlotField
from tests.redis.worker import GROUP, STREAM, Event, pending, working
from tests.support.waiting import eventually_async

seen: list[Any] = []
variable: ContextVar[str] = ContextVar("variable", default="")


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


async def outer(message: Message, call_next: Next) -> None:
    await asyncio.sleep(0)
    seen.append(("outer", message.fields["number"]))
    token = variable.set(message.fields["number"])
    try:
        await call_next(message)
    except BaseException as error:
        seen.append(("outer raised", message.fields["number"], type(error).__name__))
        raise
    finally:
        variable.reset(token)
        await asyncio.sleep(0)


async def inner(message: Message, call_next: Next) -> None:
    seen.append(("inner", message.fields["number"]))
    await call_next(message)
    seen.append(("inner done", message.fields["number"]))


async def around_call(messages: list[Message], call_next: NextBatch) -> None:
    seen.append(("list", *(message.fields["number"] for message in messages)))
    await call_next(messages)


BOTH = [outer, inner]


@handler(STREAM, group=GROUP, middleware=[outer, around_call, inner])
async def one(event: Event) -> None:
    seen.append((event.number, variable.get()))


@handler(STREAM, group=GROUP, middleware=[outer, around_call, inner])
def plain(event: Event) -> None:
    assert threading.current_thread() is not threading.main_thread()
    seen.append((event.number, variable.get()))


@pytest.mark.parametrize("function", [one, plain])
async def test_middleware_goes_around_a_handler(redis: Any, redis_url: str, function: Any) -> None:
    await redis.xadd(STREAM, {"number": 1})
    async with working(redis_url, function) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 1)
    assert seen == [("outer", "1"), ("list", "1"), ("inner", "1"), (1, "1"), ("inner done", "1")]
    assert await pending(redis) == 0


async def test_middleware_of_all_handlers_is_outermost(redis: Any, redis_url: str) -> None:
    @handler(STREAM, group=GROUP, middleware=[inner])
    async def own(message: Message) -> None:
        seen.append("own")

    await redis.xadd(STREAM, {"number": 1})
    async with working(redis_url, own, middleware=[f"{__name__}:outer"]) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 1)
    assert seen == [("outer", "1"), ("inner", "1"), "own", ("inner done", "1")]


@handler(STREAM, group=GROUP, middleware=BOTH, max_deliveries=3)
async def failing(message: Message) -> None:
    raise {"0": Retry(after_s=0), "1": Reject("no"), "2": ValueError()}[message.fields["number"]]


@handler(STREAM, group=GROUP, middleware=BOTH, max_deliveries=3)
def failing_in_a_thread(message: Message) -> None:
    raise {"0": Retry(after_s=0), "1": Reject("no"), "2": ValueError()}[message.fields["number"]]


@handler(STREAM, group=GROUP, middleware=BOTH, max_deliveries=3)
async def failing_batch(messages: list[Message]) -> None:
    errors = {"0": Retry(after_s=0), "1": Reject("no"), "2": ValueError()}
    raise BatchError({message.id: errors[message.fields["number"]] for message in messages})


@pytest.mark.parametrize("function", [failing, failing_in_a_thread, failing_batch])
@pytest.mark.parametrize("number", ["0", "1", "2"])
async def test_what_a_handler_raises_settles_through_middleware(
    redis: Any, redis_url: str, function: Any, number: str
) -> None:
    await redis.xadd(STREAM, {"number": number})
    async with working(redis_url, function, retry={"retry_base_s": 0.001}) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1)
        failed = worker.shared.get(SlotField.FAILED)
    name = {"0": "Retry", "1": "Reject", "2": "ValueError"}[number]
    attempts = 1 if number == "1" else 3
    assert failed == attempts - 1
    assert [one for one in seen if one[0] == "outer raised"] == [("outer raised", number, name)] * attempts
    ((_, letter),) = await redis.xrange(dead_key(STREAM, GROUP))
    assert letter[b"deliveries"] == str(attempts).encode()


async def test_a_message_that_does_not_decode_fails_inside_of_middleware(redis: Any, redis_url: str) -> None:
    await redis.xadd(STREAM, {"number": "odd"})
    async with working(redis_url, one) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1)
    assert seen[-1] == ("outer raised", "odd", "DecodeError")


async def skip_odd(message: Message, call_next: Next) -> None:
    if int(message.fields["number"]) % 2 == 0:
        await call_next(message)


async def refuse_four(message: Message, call_next: Next) -> None:
    if message.fields["number"] == "4":
        raise Reject("no fours")
    await call_next(message)


@handler(STREAM, group=GROUP, middleware=[around_call, outer, skip_odd, refuse_four], max_deliveries=1)
async def batch(events: list[Event]) -> None:
    seen.append([event.number for event in events])
    raise BatchError({})


@handler(STREAM, group=GROUP, middleware=[around_call, outer, skip_odd, refuse_four], max_deliveries=1)
def plain_batch(events: list[Event], messages: list[Message]) -> None:
    seen.append([event.number for event in events])
    raise BatchError({messages[at].id: Reject("no twos") for at, event in enumerate(events) if event.number == 2})


async def fill(redis: Any, *numbers: object) -> None:
    async with redis.pipeline(transaction=True) as pipe:
        for number in numbers:
            pipe.xadd(STREAM, {"number": number})
        await pipe.execute()


@pytest.mark.parametrize(("function", "dead"), [(batch, [b"4"]), (plain_batch, [b"2", b"4"])])
async def test_middleware_of_messages_goes_around_each_of_a_batch(
    redis: Any, redis_url: str, function: Any, dead: list[bytes]
) -> None:
    await fill(redis, 1, 2, 3, 4, 6)
    async with working(redis_url, function) as worker:
        counts = lambda: worker.shared.get(SlotField.DONE) + worker.shared.get(SlotField.DEAD)  # noqa: E731
        await eventually_async(lambda: counts() == 5)
    assert [number for one in seen if one[0] == "list" for number in one[1:]] == ["1", "2", "3", "4", "6"]
    assert [number for one in seen if isinstance(one, list) for number in one] == [2, 6]
    assert [one[1] for one in seen if one[0] == "outer"] == ["1", "2", "3", "4", "6"]
    letters = await redis.xrange(dead_key(STREAM, GROUP))
    assert sorted(letter[b"field:number"] for _, letter in letters) == dead
    assert await pending(redis) == 0


def of(*numbers: object) -> list[Message]:
    return [Message(f"{at}-0", STREAM, GROUP, {"number": str(number)}) for at, number in enumerate(numbers, 1)]


async def raised_by(function: Any, *numbers: object) -> dict[str, BaseException] | BaseException | None:
    """Call a handler with a batch, as an executor does."""
    (spec,) = specs_of(Settings(), [function])
    try:
        await compose(spec.middleware, spec.decode, spec.function, batch=True)(of(*numbers))
    except BatchError as error:
        return error.failed
    except BaseException as error:
        return error
    return None


async def test_a_batch_passes_as_one() -> None:
    failed = await raised_by(batch, 1, 2, 3, 4, 6)
    assert isinstance(failed, dict)
    assert {one: repr(error) for one, error in failed.items()} == {"4-0": "Reject('no fours')"}
    assert seen.count(("list", "1", "2", "3", "4", "6")) == 1
    assert [one for one in seen if isinstance(one, list)] == [[2, 6]]


@handler(STREAM, group=GROUP, middleware=[outer], max_deliveries=1)
async def all_fail(events: list[Event]) -> None:
    raise ValueError("none")


async def test_one_of_a_batch_that_does_not_decode_fails_alone() -> None:
    failed = await raised_by(all_fail, 1, "odd", 2)
    assert isinstance(failed, dict)
    assert [type(error).__name__ for error in failed.values()] == ["ValueError", "DecodeError", "ValueError"]
    raised = [one[1:] for one in seen if one[0] == "outer raised"]  # the last one first, as nested calls do
    assert raised == [("2", "ValueError"), ("odd", "DecodeError"), ("1", "ValueError")]


async def test_what_all_of_a_batch_fail_with_is_raised_as_it_is() -> None:
    assert isinstance(await raised_by(all_fail, 1, 2), ValueError)


async def test_a_batch_that_is_cancelled_stays_cancelled() -> None:
    @handler(STREAM, group=GROUP, middleware=[outer, inner])
    async def waits(messages: list[Message]) -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(raised_by(waits, 1, 2))
    await eventually_async(lambda: ("inner", "2") in seen)
    task.cancel()
    assert isinstance(await task, asyncio.CancelledError)
    raised = [one for one in seen if one[0] == "outer raised"]
    assert raised == [("outer raised", "2", "CancelledError"), ("outer raised", "1", "CancelledError")]


async def test_a_batch_that_is_cancelled_in_a_middleware_stays_cancelled() -> None:
    async def waits_before(message: Message, call_next: Next) -> None:
        seen.append("waits")
        await asyncio.Event().wait()

    @handler(STREAM, group=GROUP, middleware=[outer, waits_before])
    async def never(messages: list[Message]) -> None:
        seen.append("never")

    task = asyncio.create_task(raised_by(never, 1, 2))
    await eventually_async(lambda: "waits" in seen)
    task.cancel()
    assert isinstance(await task, asyncio.CancelledError)
    assert "never" not in seen


async def in_task(message: Message, call_next: Next) -> None:
    await asyncio.gather(call_next(message))


@pytest.mark.parametrize("error", [None, ValueError("all")])
async def test_a_message_whose_middleware_goes_on_in_another_task_is_handled_alone(error: Exception | None) -> None:
    @handler(STREAM, group=GROUP, middleware=[in_task])
    async def sizes(messages: list[Message]) -> None:
        seen.append(len(messages))
        if error is not None:
            raise error

    assert await raised_by(sizes, 1, 2) is error
    assert seen == [1, 1]


async def test_a_timeout_of_a_batchs_middleware_is_a_timeout_of_the_batch() -> None:
    async def limited(message: Message, call_next: Next) -> None:
        async with asyncio.timeout(0.01):
            await call_next(message)

    @handler(STREAM, group=GROUP, middleware=[limited])
    async def waits(messages: list[Message]) -> None:
        await asyncio.Event().wait()

    assert isinstance(await raised_by(waits, 1, 2, 3), TimeoutError)


async def try_twice(message: Message, call_next: Next) -> None:
    try:
        await call_next(message)
    except ValueError:
        await call_next(message)


async def test_middleware_may_call_the_handler_again(redis: Any, redis_url: str) -> None:
    calls: list[int] = []

    @handler(STREAM, group=GROUP, middleware=[try_twice])
    async def fails_once(message: Message) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError

    await fill(redis, 1, 2)
    async with working(redis_url, fails_once) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 2)
        assert worker.shared.get(SlotField.FAILED) == 0
    assert calls == [1, 1, 1]


async def test_one_message_of_a_batch_may_be_tried_again_alone() -> None:
    calls: list[list[str]] = []

    @handler(STREAM, group=GROUP, middleware=[try_twice])
    async def fails_once(messages: list[Message]) -> None:
        calls.append([message.id for message in messages])
        if len(calls) == 1:
            raise BatchError({messages[1].id: ValueError()})

    assert await raised_by(fails_once, 1, 2, 3) is None
    assert calls == [["1-0", "2-0", "3-0"], ["2-0"]]


@pytest.mark.parametrize("kind", ["message", "batch", "thread"])
async def test_the_time_limit_holds_within_middleware(redis: Any, redis_url: str, kind: str) -> None:
    gate = threading.Event()

    @handler(STREAM, group=GROUP, middleware=BOTH, timeout_s=0.1, max_deliveries=1)
    async def message(message: Message) -> None:
        await asyncio.Event().wait()

    @handler(STREAM, group=GROUP, middleware=BOTH, timeout_s=0.1, max_deliveries=1)
    async def batch(messages: list[Message]) -> None:
        await asyncio.Event().wait()

    @handler(STREAM, group=GROUP, middleware=BOTH, timeout_s=0.1, max_deliveries=1)
    def thread(message: Message) -> None:
        gate.wait(30)

    await redis.xadd(STREAM, {"number": 1})
    functions: dict[str, Any] = {"message": message, "batch": batch, "thread": thread}
    async with working(redis_url, functions[kind]) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1)
        gate.set()
    ((_, letter),) = await redis.xrange(dead_key(STREAM, GROUP))
    assert b"HandlerTimeoutError" in letter[b"error"]
    assert ("outer raised", "1", "CancelledError") in seen
