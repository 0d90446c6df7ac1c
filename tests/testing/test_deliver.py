"""`deliver` runs decoding, middleware and the handler as a worker does, and says how the delivery ends."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from supervisor import BatchError, Emit, Message, Next, Reject, Retry, UsageError, context, handler, worker_lifespan
from supervisor.errors import HandlerTimeoutError
from supervisor.testing import Dead, Done, Retried, TestPool, deliver


class Event(BaseModel):
    number: int


seen: list[Any] = []


async def outer(message: Message, call_next: Next) -> None:
    seen.append("outer")
    await call_next(message)


@handler("numbers", group="g", middleware=[outer], max_deliveries=3, retry_base_s=2)
async def handle(event: Event) -> None:
    errors = {1: ValueError("one"), 2: Retry("two", after_s=7), 3: Reject("three")}
    if event.number in errors:
        raise errors[event.number]


@handler("numbers", group="plain", max_deliveries=3, retry_base_s=2)
def plain(event: Event, message: Message) -> None:
    assert threading.current_thread() is not threading.main_thread()
    assert context().message is message
    if event.number:
        raise ValueError("one")


async def test_outcomes() -> None:
    seen.clear()
    assert await deliver(handle, {"number": "0"}) == Done()
    assert seen == ["outer"]
    failed = await deliver(handle, Event(number=1), attempt=2)
    assert isinstance(failed, Retried)
    assert (failed.after_s, repr(failed.error)) == (4.0, "ValueError('one')")
    asked = await deliver(handle, {"number": "2"})
    assert isinstance(asked, Retried) and asked.after_s == 7
    assert await deliver(handle, {"number": "3"}) == Dead("three")
    last = await deliver(handle, {"number": "1"}, attempt=3)
    assert isinstance(last, Dead) and last.reason == "failed 3 times, the last time with ValueError: one"
    odd = await deliver(handle, {"number": "odd"})
    assert isinstance(odd, Dead) and "number: Input should be a valid integer" in odd.reason


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError()])
async def test_what_ends_no_worker_ends_no_test(error: BaseException) -> None:
    @handler("ends", group="g")
    async def ends(event: Event) -> None:
        raise error

    outcome = await deliver(ends, {"number": 1})
    assert isinstance(outcome, Retried)
    assert outcome.error is error


async def test_a_test_that_is_cancelled_ends() -> None:
    started = asyncio.Event()

    @handler("waits", group="g")
    async def waits(event: Event) -> None:
        started.set()
        await asyncio.Event().wait()

    delivery = asyncio.create_task(deliver(waits, {"number": 1}))
    await started.wait()
    delivery.cancel()
    with pytest.raises(asyncio.CancelledError):
        await delivery


async def test_plain_functions_run_in_threads() -> None:
    assert await deliver(plain, {"number": "0"}) == Done()
    assert isinstance(await deliver(plain, {"number": "1"}), Retried)


@handler("numbers", group="batch", max_deliveries=2)
async def batch(events: list[Event], messages: list[Message]) -> None:
    raise BatchError({messages[at].id: ValueError() for at, event in enumerate(events) if event.number == 1})


async def test_a_batch_has_an_outcome_for_each() -> None:
    done, failed, dead = await deliver(batch, [{"number": "0"}, {"number": "1"}, {"number": "odd"}])
    assert done == Done()
    assert isinstance(failed, Retried)
    assert isinstance(dead, Dead)
    assert await deliver(batch, {"number": "0"}) == Done()


@handler("numbers", group="slow", timeout_s=0.01)
async def slow(message: Message) -> None:
    await asyncio.Event().wait()


async def test_the_time_limit_holds() -> None:
    outcome = await deliver(slow, {"n": "1"})
    assert isinstance(outcome, Retried)
    assert isinstance(outcome.error, HandlerTimeoutError)


@handler("numbers", group="publishing")
async def publishing(message: Message) -> None:
    await context().publisher.publish("first", {"of": context().message.id})
    await context().redis.xadd("second", {"sender": context().app["sender"]})


async def test_what_was_published_is_emitted() -> None:
    outcome = await deliver(publishing, {"n": "1"}, app={"sender": "me"})
    assert [(one.stream, one.fields) for one in outcome.emitted] == [
        ("first", {"of": "1700000000000-0"}),
        ("second", {"sender": "me"}),
    ]
    again = await deliver(publishing, {"n": "1"}, app={"sender": "me"})
    assert len(again.emitted) == 2
    with pytest.raises(UsageError):
        context()


@worker_lifespan
async def resources() -> AsyncIterator[dict[str, object]]:
    yield {"opened": True}


@handler("numbers", group="state")
async def with_state(message: Message) -> None:
    seen.append(context().state)


async def test_state_is_that_of_the_lifespan_or_of_the_test() -> None:
    seen.clear()
    await deliver(with_state, {"n": "1"})
    await deliver(with_state, {"n": "1"}, state={"opened": "by the test"})
    assert seen == [{"opened": True}, {"opened": "by the test"}]


@handler("numbers", group="one")
@handler("numbers", group="two")
async def twice(message: Message) -> None:
    seen.append(message.group)


async def test_a_handler_of_several_groups_is_chosen() -> None:
    seen.clear()
    await deliver(twice, {"n": "1"}, group="two")
    assert seen == ["two"]
    with pytest.raises(UsageError, match="group= is one of 'one', 'two'"):
        await deliver(twice, {"n": "1"})


async def test_a_function_without_handler_is_named() -> None:
    async def nothing(message: Message) -> None: ...

    with pytest.raises(UsageError, match=r"nothing' is not a handler: it needs @handler"):
        await deliver(nothing, {"n": "1"})
    with pytest.raises(UsageError, match="takes one message"):
        await deliver(handle, [{"number": "1"}])


@handler("numbers", group="emits", middleware=[outer])
async def emits(event: Event) -> list[Emit]:
    if not event.number:
        raise ValueError("none")
    return [Emit("doubled", {"number": 2 * event.number}), Emit("seen", event)]


@handler("numbers", group="emits-batch")
def emits_batch(events: list[Event]) -> Emit:
    return Emit("sums", {"sum": sum(event.number for event in events)})


async def test_what_a_handler_returns_is_emitted() -> None:
    done = await deliver(emits, Event(number=2))
    assert isinstance(done, Done)
    assert [(one.stream, one.fields) for one in done.emitted] == [
        ("doubled", {"number": "4"}),
        ("seen", {"number": "2"}),
    ]
    first, _ = await deliver(emits_batch, [{"number": 1}, {"number": 2}])
    assert [(one.stream, one.fields) for one in first.emitted] == [("sums", {"sum": "3"})]
    failed = await deliver(emits, {"number": 0})
    assert isinstance(failed, Retried) and failed.emitted == ()


async def test_a_pool_publishes_what_a_handler_returns() -> None:
    async with TestPool(emits) as pool:
        await pool.publish("numbers", Event(number=3))
        await pool.settled()
        assert [fields for _, fields in await pool.redis.xrange("doubled")] == [{b"number": b"6"}]
