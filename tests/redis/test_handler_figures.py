"""What a worker counts for its handlers, on a real server."""

import asyncio
import time
from typing import Any

from redis.asyncio import Redis

from supervisor import Message, Reject, handler
from supervisor.shared_figures import PROCESS_BOUNDS_S, RECLAIM_BOUNDS_S, REDIS_BOUNDS_S, FigureField
from supervisor.shared_state import SharedState, SlotField
from tests.redis.worker import GROUP, STREAM, Worker, pending, working
from tests.support.waiting import eventually_async

BUCKETS = len(PROCESS_BOUNDS_S) + 1
WAIT_S = 0.03


def counted(worker: Worker, field: FigureField) -> int:
    figures = worker.shared.figures(STREAM, GROUP)
    assert figures is not None
    return figures.get(field)


def calls(worker: Worker) -> list[int]:
    figures = worker.shared.figures(STREAM, GROUP)
    assert figures is not None
    first = FigureField.PROCESS_BUCKETS
    return [int(figures._words[figures._at + first + bucket]) for bucket in range(BUCKETS)]


async def publish(redis: Redis, *kinds: str) -> None:
    for kind in kinds:
        await redis.xadd(STREAM, {"kind": kind})


async def test_deliveries_outcomes_and_times_are_counted(redis_url: str, redis: Redis) -> None:
    @handler(STREAM, group=GROUP, retry_base_s=0.01)
    async def handle(message: Message) -> None:
        match message.fields["kind"]:
            case "slow":
                await asyncio.sleep(WAIT_S)
            case "fails once" if message.deliveries == 1:
                raise ValueError
            case "reject":
                raise Reject

    await publish(redis, *["quick"] * 20, "slow", "fails once", "reject", *["quick"] * 20, "slow")
    async with working(redis_url, handle) as worker:
        await eventually_async(lambda: counted(worker, FigureField.SETTLED_DONE) == 43)
    outcomes = [FigureField.SETTLED_RETRY, FigureField.SETTLED_DEAD, FigureField.SETTLED_LOST_CLAIM]
    assert [counted(worker, field) for field in outcomes] == [1, 1, 0]
    assert (counted(worker, FigureField.DELIVERED), counted(worker, FigureField.REDELIVERED)) == (44, 1)
    assert sum(calls(worker)) == 45
    assert sum(calls(worker)[3:]) >= 2, "the two that waited took longer than 25 ms"
    assert counted(worker, FigureField.PROCESS_US) >= 1.8 * WAIT_S * 1e6, "the loop's timers count in milliseconds"


async def test_a_batch_is_one_call_and_a_thread_counts_from_its_start(redis_url: str, redis: Redis) -> None:
    @handler(STREAM, group=GROUP)
    async def batch(messages: list[Message]) -> None: ...

    @handler(STREAM, group="plain")
    def plain(message: Message) -> None: ...

    await publish(redis, *["quick"] * 10)
    async with working(redis_url, batch, plain) as worker:
        await eventually_async(lambda: counted(worker, FigureField.SETTLED_DONE) == 10)
        other: Any = worker.shared.figures(STREAM, "plain")
        await eventually_async(lambda: other.get(FigureField.SETTLED_DONE) == 10)
    assert 1 <= sum(calls(worker)) <= 10
    assert 0 < other.get(FigureField.PROCESS_US) < 60e6


async def test_what_a_predecessor_left_is_a_reclaim_and_another_delivery(redis_url: str, redis: Redis) -> None:
    started = asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def hangs(message: Message) -> None:
        started.set()
        await asyncio.sleep(3600)

    @handler(STREAM, group=GROUP)
    async def works(message: Message) -> None: ...

    shared = SharedState()
    await publish(redis, "one", "two")
    first = Worker(redis_url, [hangs], shared)
    await asyncio.wait_for(started.wait(), 30)
    await first.vanish()
    left = await pending(redis)
    shared.slot(0).set(SlotField.EXITED_NS, time.monotonic_ns())
    second = Worker(redis_url, [works], shared)
    await eventually_async(lambda: counted(second, FigureField.SETTLED_DONE) == 2)
    await second.stop()
    assert counted(second, FigureField.RECLAIMED_CHILD_EXIT) == counted(second, FigureField.REDELIVERED) == left
    assert sum(shared.slot(0).histogram(SlotField.RECLAIM_DELAY_US, RECLAIM_BOUNDS_S)[1:]) == left
    assert sum(shared.slot(0).histogram(SlotField.SETTLE_US, REDIS_BOUNDS_S)[1:]) >= 1
