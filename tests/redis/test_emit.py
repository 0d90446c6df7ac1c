"""`return Emit(...)`: published with the ack, once, whatever form the handler has."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel
from redis.exceptions import ResponseError

from supervisor import BatchError, Emit, EncodeError, Message, Next, Retry, UsageError, handler
from supervisor.broker.scripts import EMIT
from supervisor.handling.middleware import NextBatch
from supervisor.keys import crashes_key, dead_key, origins_key, retries_key
from supervisor.shared_state import SharedState, SlotField
from tests.redis.worker import GROUP, STREAM, Worker, pending, working
from tests.support.waiting import eventually_async

OUT = "out"


class Number(BaseModel):
    n: int


async def on_the_loop(event: Number) -> Emit:
    return Emit(OUT, event)


def in_a_thread(event: Number) -> Emit:
    return Emit(OUT, event)


async def several(event: Number) -> list[Emit]:
    return [Emit(OUT, event), Emit("other", {"of": event.n})]


async def batch(events: list[Number]) -> list[Emit]:
    return [Emit(OUT, event) for event in events]


async def passing(message: Message, call_next: Next) -> None:
    await call_next(message)


async def passing_all(messages: list[Message], call_next: NextBatch) -> None:
    await call_next(messages)


async def numbers(redis: Any, stream: str = OUT, name: bytes = b"n") -> list[int]:
    return [int(fields[name]) for _, fields in await redis.xrange(stream)]


@pytest.mark.parametrize("middleware", [[], [passing], [passing_all]], ids=["plain", "each", "list"])
@pytest.mark.parametrize("function", [on_the_loop, in_a_thread, several, batch])
async def test_each_form_publishes_once(
    redis: Any, redis_url: str, function: Callable[..., Any], middleware: list[Any]
) -> None:
    for n in range(30):
        await redis.xadd(STREAM, {"n": n})
    declared = handler(STREAM, group=GROUP, middleware=middleware)(function)
    try:
        async with working(redis_url, declared) as worker:
            await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 30)
    finally:
        del function.__supervisor_handlers__  # type: ignore[attr-defined]
    assert sorted(await numbers(redis)) == list(range(30))
    assert await pending(redis) == 0
    assert await redis.xlen("other") == (30 if function is several else 0)


async def test_an_attempt_that_fails_publishes_nothing(redis: Any, redis_url: str) -> None:
    async def fails_after(message: Message, call_next: Next) -> None:
        await call_next(message)
        if message.deliveries == 1:
            raise Retry(after_s=0)

    @handler(STREAM, group=GROUP, middleware=[fails_after])
    async def handle(message: Message) -> Emit:
        return Emit(OUT, {"n": message.deliveries})

    await redis.xadd(STREAM, {"n": 1})
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 1)
    assert await numbers(redis) == [2]
    assert not await redis.exists(retries_key(STREAM, GROUP))


async def test_a_batch_publishes_for_the_messages_that_are_done(redis: Any, redis_url: str) -> None:
    async def refuses(message: Message, call_next: Next) -> None:
        await call_next(message)
        if message.fields["n"] == "1":
            raise ValueError("not this one")

    @handler(STREAM, group=GROUP, middleware=[refuses], max_deliveries=1)
    async def handle(events: list[Number]) -> Emit:
        return Emit(OUT, {"n": sum(event.n for event in events)})

    for n in ("1", "2", "no number", "3"):
        await redis.xadd(STREAM, {"n": n})
    await redis.xgroup_create(STREAM, GROUP, "0")
    await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})  # one batch, which a predecessor has only read
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 2)
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 2)
    assert await numbers(redis) == [6]
    assert await pending(redis) == 0


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Emit(OUT, {"n": object()}), "Emit to 'out': field 'n'"),
        (lambda: Emit(OUT, {}), "at least one field"),
        (lambda: Emit("", {"n": 1}), "the stream must be a string"),
        (lambda: [Emit(OUT, {"n": 1}), {"n": 2}], "a list of Emit has a dict among them"),
        (lambda: [Emit(OUT, {"n": 1})] * 1001, "at most 1000"),
    ],
)
async def test_what_can_not_be_published_is_a_failure_of_the_handler(
    redis: Any, redis_url: str, make: Callable[[], Any], reason: str
) -> None:
    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def handle(message: Message) -> Any:
        return make()

    await redis.xadd(STREAM, {"n": 1})
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1)
    [(_, letter)] = await redis.xrange(dead_key(STREAM, GROUP))
    assert reason in letter[b"error"].decode()
    assert letter[b"handler"].decode().endswith("handle")
    assert not await redis.exists(OUT)


async def test_another_result_is_ignored(redis: Any, redis_url: str) -> None:
    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> Any:
        return {"0": [], "1": 7, "2": [7], "3": ()}[message.fields["n"]]

    for n in range(4):
        await redis.xadd(STREAM, {"n": n})
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 4)
    assert await pending(redis) == 0
    assert worker.faults == []


async def test_a_server_that_forgot_the_script_gets_it_again(redis: Any, redis_url: str) -> None:
    async with working(redis_url, handler(STREAM, group=GROUP)(on_the_loop)) as worker:
        for n in range(3):
            await redis.script_flush()
            await redis.xadd(STREAM, {"n": n})
            await eventually_async(lambda: worker.shared.get(SlotField.DONE) == n + 1)  # noqa: B023
            await eventually_async(lambda: not any(one.backlog for one in worker.runtime.settlers))
    assert await numbers(redis) == [0, 1, 2]
    del on_the_loop.__supervisor_handlers__  # type: ignore[attr-defined]


async def test_a_message_of_another_worker_publishes_nothing(redis: Any, redis_url: str) -> None:
    started, gate = asyncio.Event(), asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> Emit:
        started.set()
        await gate.wait()
        return Emit(OUT, {"n": 1})

    entry = await redis.xadd(STREAM, {"n": 1})
    async with working(redis_url, handle) as worker:
        await asyncio.wait_for(started.wait(), 30)
        await redis.xclaim(STREAM, GROUP, "other:0", 0, [entry])
        gate.set()
        await eventually_async(lambda: worker.shared.get(SlotField.LOST_CLAIM) == 1)
    assert not await redis.exists(OUT)
    assert await pending(redis) == 1


async def test_a_handler_with_turns_publishes_before_it_passes_them_on(redis: Any, redis_url: str) -> None:
    async def fails_once(message: Message, call_next: Next) -> None:
        await call_next(message)
        if message.deliveries == 1:
            raise Retry(after_s=0)

    @handler(STREAM, group=GROUP, key="k", middleware=[fails_once])
    async def handle(message: Message) -> Emit:
        return Emit(OUT, {"n": message.fields["n"]})

    for n in range(10):
        await redis.xadd(STREAM, {"n": n, "k": "one"})
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 10)
    assert await numbers(redis) == list(range(10))
    assert await pending(redis) == 0


async def test_a_message_that_is_handled_again_in_another_batch_publishes_again(redis: Any, redis_url: str) -> None:
    published = asyncio.Event()

    async def hangs_first(messages: list[Message], call_next: NextBatch) -> None:
        await call_next(messages)
        if not published.is_set():
            published.set()
            await asyncio.sleep(3600)

    @handler(STREAM, group=GROUP, key="n", middleware=[hangs_first])
    async def handle(events: list[Number]) -> Emit:
        return Emit(OUT, {"sum": sum(event.n for event in events)})

    async def read_one_more(n: int) -> bytes:
        entry = await redis.xadd(STREAM, {"n": n})
        await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})
        return bytes(entry)

    await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    await read_one_more(1)
    second = await read_one_more(2)
    worker = Worker(redis_url, [handle], SharedState())
    await asyncio.wait_for(published.wait(), 30)
    await worker.vanish()
    await redis.xack(STREAM, GROUP, second)
    await read_one_more(4)
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 2)
    assert sorted(await numbers(redis, name=b"sum")) == [1, 3, 4], "the suspect runs alone"


class TestScript:
    """The script on every kind of server."""

    KEYS = (STREAM, retries_key(STREAM, GROUP), crashes_key(STREAM, GROUP))

    @pytest.fixture
    def sync(self, every_server: Any) -> Any:
        with every_server.sync() as client:
            yield client

    def deliver(self, sync: Any, count: int) -> list[bytes]:
        sync.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        entries = [sync.xadd(STREAM, {"n": n}) for n in range(count)]
        sync.xreadgroup(GROUP, "host:0", {STREAM: ">"})
        return entries

    def emit(self, sync: Any, ids: list[bytes], streams: list[str], *values: object) -> Any:
        keys = (*self.KEYS, *(key for stream in streams for key in (stream, origins_key(stream))))
        return sync.eval(EMIT.text, len(keys), *keys, GROUP, "host:0", 0, len(ids), *ids, STREAM, "1-0", *values)

    def test_it_publishes_and_acks_once(self, sync: Any) -> None:
        ids = self.deliver(sync, 2500)
        large = [f"f{n}" for n in range(20_000)]
        values = (4, 2, "a", "b", 6, len(large), *large)
        assert self.emit(sync, ids, [OUT, "other"], *values) == 2500
        assert self.emit(sync, ids, [OUT, "other"], *values) == 0
        assert [fields for _, fields in sync.xrange(OUT)] == [{b"a": b"b"}]
        assert sync.xlen("other") == 1 and sync.xpending(STREAM, GROUP)["pending"] == 0

    def test_it_does_nothing_when_one_stream_is_no_stream(self, sync: Any) -> None:
        ids = self.deliver(sync, 1)
        sync.set("other", "text")
        with pytest.raises(ResponseError, match="wrong kind of value: other"):
            self.emit(sync, ids, [OUT, "other"], 4, 2, "a", "b", 6, 2, "a", "b")
        assert not sync.exists(OUT) and sync.xpending(STREAM, GROUP)["pending"] == 1


def test_two_are_equal_when_they_store_the_same() -> None:
    assert Emit(OUT, Number(n=1)) == Emit(OUT, {"n": "1"})
    assert Emit(OUT, {"n": 1}) != Emit("other", {"n": 1})
    assert "secret" not in repr(Emit(OUT, {"n": "secret"}))
    with pytest.raises(EncodeError) as raised:
        Emit(OUT, {"n": float("nan")})
    assert raised.value.field == "n"
    with pytest.raises(UsageError, match="not Unicode"):
        Emit("\ud800", {"n": 1})


async def test_a_batch_that_fails_in_part_publishes_nothing(redis: Any, redis_url: str) -> None:
    """A handler that raises has returned nothing."""

    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def handle(messages: list[Message]) -> list[Emit]:
        raise BatchError({messages[0].id: ValueError("no")})

    await redis.xadd(STREAM, {"n": 1})
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1)
    assert not await redis.exists(OUT)
