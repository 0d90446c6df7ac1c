"""Whom a crash is charged to, and how often: never an innocent one, never twice, on real servers."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from supervisor import Message, handler
from supervisor.broker.command_connection import CommandConnection
from supervisor.core.ids import parse_id
from supervisor.keys import crashes_key, dead_key, isolated_key, retries_key
from supervisor.shared_state import SharedState, SlotField
from supervisor.worker import thread_calls
from tests.redis.worker import GROUP, STREAM, Worker
from tests.support.waiting import eventually_async


@pytest.fixture
def end() -> Iterator[threading.Event]:
    """Ends the threads that wait for it."""
    event = threading.Event()
    yield event
    event.set()


async def crashed_alone(redis_url: str, redis: Redis, shared: SharedState) -> bytes:
    """The id of a message with which a worker died; it was the only one in hand."""
    hold = asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        await hold.wait()

    entry: bytes = await redis.xadd(STREAM, {"n": 1})
    worker = Worker(redis_url, [handle], shared)
    await eventually_async(
        lambda: shared.slot(0).get(SlotField.IN_FLIGHT) or worker.runtime.consumers[0].executor.running
    )
    started = shared.slot(0).consumer(STREAM, GROUP).started()  # type: ignore[union-attr]
    await worker.vanish()
    shared.slot(0).consumer(STREAM, GROUP).set_started(*started)  # type: ignore[union-attr]
    return entry


async def test_a_fault_of_redis_between_charge_and_run_charges_nobody_twice(redis_url: str, redis: Redis) -> None:
    shared, ran = SharedState(), asyncio.Event()
    entry = await crashed_alone(redis_url, redis, shared)
    shared.slot(0).consumer(STREAM, GROUP).set_isolated(*parse_id(entry))  # type: ignore[union-attr]
    shared.slot(0).set(SlotField.INCARNATION, 2)
    # What comes after the charge fails until this key is gone.
    await redis.set(retries_key(STREAM, GROUP), "of another type")

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        ran.crashes = await redis.hget(crashes_key(STREAM, GROUP), message.id)  # type: ignore[attr-defined]
        ran.set()

    worker = Worker(redis_url, [handle], shared)
    await eventually_async(lambda: worker.faults)
    await redis.delete(retries_key(STREAM, GROUP))
    await asyncio.wait_for(ran.wait(), 30)
    await worker.stop()
    assert ran.crashes == b"1"  # type: ignore[attr-defined]


async def test_who_ran_beside_a_thread_out_of_time_is_not_charged(
    redis_url: str, redis: Redis, end: threading.Event
) -> None:
    """A thread that goes on after its message's time limit may be what ends the process."""
    shared, hold = SharedState(), asyncio.Event()

    @handler(STREAM, group="threads", timeout_s=0.05, retry_base_s=60)
    def in_thread(message: Message) -> None:
        end.wait(20)

    @handler(STREAM, group=GROUP)
    async def innocent(message: Message) -> None:
        await hold.wait()

    entry = await redis.xadd(STREAM, {"n": 1})
    once = {"consumer": {"max_crashes": 1}}
    first = Worker(redis_url, [in_thread, innocent], shared, **once)
    row: Any = shared.slot(0).consumer(STREAM, GROUP)
    await eventually_async(lambda: redis.hlen(retries_key(STREAM, "threads")))
    await eventually_async(lambda: row.started() == parse_id(entry))
    await first.vanish()
    row.set_started(*parse_id(entry))
    shared.slot(0).set(SlotField.INCARNATION, 2)
    hold.set()
    second = Worker(redis_url, [in_thread, innocent], shared, **once)
    await eventually_async(lambda: shared.slot(0).get(SlotField.DONE) + shared.slot(0).get(SlotField.DEAD))
    end.set()
    await second.stop()
    assert shared.slot(0).get(SlotField.DEAD) == 0, "it was charged for another's thread"


async def test_a_suspects_thread_is_over_before_the_next_one_runs(
    redis_url: str, redis: Redis, end: threading.Event
) -> None:
    shared = SharedState()
    began: list[str] = []

    @handler(STREAM, group=GROUP, timeout_s=0.05, retry_base_s=60)
    def in_thread(message: Message) -> None:
        began.append(message.fields["n"])
        end.wait(20)

    entries = [await redis.xadd(STREAM, {"n": n}) for n in "ab"]
    first = Worker(redis_url, [in_thread], shared)
    await eventually_async(lambda: len(began) == 2)
    await first.vanish()
    await redis.delete(retries_key(STREAM, GROUP))
    row: Any = shared.slot(0).consumer(STREAM, GROUP)
    row.set_started(*parse_id(entries[-1]))
    shared.slot(0).set(SlotField.INCARNATION, 2)
    began.clear()
    second = Worker(redis_url, [in_thread], shared)
    await eventually_async(lambda: shared.slot(0).get(SlotField.FAILED) >= 1 and began)
    await asyncio.sleep(0.3)  # the next one would have begun
    meanwhile = list(began), row.isolated(), await redis.hget(isolated_key(STREAM, GROUP), "host:0")
    end.set()
    await eventually_async(lambda: began == ["a", "b"])
    await second.stop()
    assert meanwhile == (["a"], parse_id(entries[0]), entries[0]), "its thread still ran, and was marked"
    assert row.isolated() is None


async def test_a_worker_that_leaves_before_it_could_read_keeps_its_predecessors_marks(
    redis_url: str, redis: Redis
) -> None:
    """Its successor knows whom to charge, and what to run alone."""
    shared = SharedState()
    entry = await crashed_alone(redis_url, redis, shared)
    fields, row = shared.slot(0), shared.slot(0).consumer(STREAM, GROUP)
    assert row is not None
    second = await redis.xadd(STREAM, {"n": 2})
    seen: list[tuple[str, tuple[int, int] | None]] = []

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        seen.append((message.id, row.isolated()))

    fields.reset_for_new_worker()
    early = Worker("redis://127.0.0.1:1", [handle], shared)
    await eventually_async(lambda: early.runtime.cut_off)
    await early.stop()
    fields.clear_started()  # as the arbiter does
    fields.reset_for_new_worker()
    assert row.started() == parse_id(entry)
    worker = Worker(redis_url, [handle], shared)
    await eventually_async(lambda: len(seen) == 2)
    await worker.stop()
    # In any order: the second message may have been delivered to the crashed worker, whose read the server still had.
    assert dict(seen) == {entry.decode(): parse_id(entry), second.decode(): None}
    assert fields.get(SlotField.ISOLATING) == 0 and row.started() == (0, 0)


async def test_a_mark_in_redis_that_no_worker_wrote_is_removed(redis_url: str, redis: Redis) -> None:
    handled = asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        handled.set()

    await redis.hset(isolated_key(STREAM, GROUP), "host:0", "no id")  # type: ignore[misc]
    await redis.xadd(STREAM, {"n": 1})
    worker = Worker(redis_url, [handle], SharedState())
    await eventually_async(lambda: handled.is_set() or worker.task.done())
    assert handled.is_set()
    await worker.stop()
    assert not await redis.exists(isolated_key(STREAM, GROUP))


async def test_suspects_that_did_not_run_before_a_drain_stay_suspects(redis_url: str, redis: Redis) -> None:
    shared = SharedState()
    ids = [await redis.xadd(STREAM, {"n": n}) for n in range(3)]
    hold = asyncio.Event()
    alone: list[tuple[str, tuple[int, int] | None]] = []

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        alone.append((message.id, row.isolated()))
        await hold.wait()

    fields = shared.slot(0)
    row: Any = fields.consumer(STREAM, GROUP)
    first = Worker(redis_url, [handle], shared)
    await eventually_async(lambda: len(alone) == 3)
    started = row.started()
    await first.vanish()
    row.set_started(*started)
    fields.reset_for_new_worker()
    alone.clear()
    second = Worker(redis_url, [handle], shared)
    await eventually_async(lambda: alone)
    draining = asyncio.create_task(second.stop())
    await eventually_async(lambda: second.runtime._control.stopping)
    hold.set()
    await draining
    fields.clear_started()
    assert len(alone) == 1 and row.started() == started
    fields.reset_for_new_worker()
    third = Worker(redis_url, [handle], shared)
    await eventually_async(lambda: len(alone) == 3)
    await third.stop()
    assert alone == [(entry.decode(), parse_id(entry)) for entry in ids]


@pytest.mark.parametrize("max_deliveries", [5, 1])
async def test_a_thread_for_which_its_worker_is_killed_is_charged_once(
    redis_url: str, redis: Redis, end: threading.Event, monkeypatch: pytest.MonkeyPatch, max_deliveries: int
) -> None:
    """Only the end of the process ends such a call. A message that is a dead letter by then is not charged."""
    monkeypatch.setattr(thread_calls, "CANCEL_GRACE_S", 0.0)
    shared = SharedState()

    @handler(STREAM, group=GROUP, timeout_s=0.05, retry_base_s=60, max_deliveries=max_deliveries)
    def in_thread(message: Message) -> None:
        end.wait(20)

    await redis.xadd(STREAM, {"n": 1})
    first = Worker(redis_url, [in_thread], shared, consumer={"max_crashes": 1})
    outcome = SlotField.FAILED if max_deliveries > 1 else SlotField.DEAD
    await eventually_async(lambda: shared.slot(0).get(outcome) == 1)
    for _ in range(2):
        first.runtime.charge_overdue()
        await asyncio.gather(*(settler.flush() for settler in first.runtime.settlers))
    charged = await redis.hgetall(crashes_key(STREAM, GROUP))
    assert list(charged.values()) == [b"1"] * (max_deliveries > 1)
    await first.vanish()
    if charged:
        shared.slot(0).set(SlotField.INCARNATION, 2)
        second = Worker(redis_url, [in_thread], shared, consumer={"max_crashes": 1})
        await eventually_async(lambda: shared.slot(0).get(SlotField.DEAD) == 1)
        await second.stop()
    [(_, letter)] = await redis.xrange(dead_key(STREAM, GROUP))
    assert letter[b"reason"].startswith(b"crashed the worker" if charged else b"failed once")


async def test_a_charge_whose_answer_was_lost_is_not_sent_again(
    redis_url: str, redis: Redis, end: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been counted, and a message with one crash too many would be dead."""
    monkeypatch.setattr(thread_calls, "CANCEL_GRACE_S", 0.0)
    shared, pipeline, lost = SharedState(), CommandConnection.pipeline, 0

    async def loses_answers(self: CommandConnection, packed: Sequence[bytes]) -> Any:
        nonlocal lost
        replies = await pipeline(self, packed)
        if lost < 2 and any(b"HINCRBY" in command for command in packed):
            lost += 1
            raise ConnectionError("lost")
        return replies

    monkeypatch.setattr(CommandConnection, "pipeline", loses_answers)

    @handler(STREAM, group=GROUP, timeout_s=0.05, retry_base_s=60)
    def in_thread(message: Message) -> None:
        end.wait(20)

    await redis.xadd(STREAM, {"n": 1})
    worker = Worker(redis_url, [in_thread], shared)
    await eventually_async(lambda: shared.slot(0).get(SlotField.FAILED) == 1)
    worker.runtime.charge_overdue()
    await asyncio.gather(*(settler.flush() for settler in worker.runtime.settlers))
    await worker.vanish()
    assert lost and await redis.hvals(crashes_key(STREAM, GROUP)) == [b"1"]
