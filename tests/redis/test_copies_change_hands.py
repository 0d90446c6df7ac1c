"""Replayed copies go to another worker when theirs leaves or dies, on every server."""

import asyncio
from typing import Any

import pytest

from supervisor import Message, handler
from supervisor.broker import inspect
from supervisor.handling.loader import specs_of
from supervisor.keeper.keeper import Keeper
from supervisor.keeper.reaper import Reaper
from supervisor.keys import retries_key
from supervisor.log import FaultLog
from supervisor.settings.model import Settings
from supervisor.shared_state import HeaderField, SharedState, SlotField
from tests.redis.replays import COPIES, GROUP, QUICK, STREAM, nothing_left, replay_all, trimmed
from tests.redis.worker import Worker
from tests.support.waiting import eventually_async, next_ms

pytestmark = pytest.mark.usefixtures("every_server")


class Log:
    """Nobody reads it."""

    def info(self, *_: Any, **__: Any) -> None: ...


async def test_who_leaves_for_good_hands_copies_over_and_a_drain_keeps_their_retries(
    redis: Any, sync: Any, every_server: Any
) -> None:
    trimmed(sync, 3)
    shared, failed = SharedState(), failed_count

    @handler(STREAM, group=GROUP, retry_base_s=3600, retry_max_s=3600)
    async def handle(message: Message) -> None:
        raise ValueError("later")

    assert await replay_all(redis) == ["replayed"] * 3
    worker = Worker(every_server.url, [handle], shared, **QUICK)
    await eventually_async(lambda: failed(shared) == 3)
    await eventually_async(lambda: redis.hlen(retries_key(COPIES, GROUP)))
    await worker.stop()
    assert [row["name"] for row in sync.xinfo_consumers(COPIES, GROUP)] == [b"host:0"]
    again = Worker(every_server.url, [handle], shared, **QUICK)
    await eventually_async(lambda: shared.slot(0).get(SlotField.ADOPTED) == 3)
    [info] = await inspect.groups(redis, [(STREAM, GROUP)])
    assert (info.pending, info.replaying, info.retrying) == (3, 3, 3)
    await again.stop(successor="host:1")
    assert [(row["name"], row["pending"]) for row in sync.xinfo_consumers(COPIES, GROUP)] == [(b"host:1", 3)]
    assert failed(shared) == 3, "nothing ran before its time"


def failed_count(shared: SharedState) -> int:
    return shared.slot(0).get(SlotField.FAILED)


async def test_who_may_only_hand_over_does_so_with_copies(redis: Any, sync: Any, every_server: Any) -> None:
    trimmed(sync, 2)
    assert await replay_all(redis) == ["replayed"] * 2
    sync.xreadgroup(GROUP, "host:0", {COPIES: ">"})

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None: ...

    worker = Worker(every_server.url, [handle], SharedState(), **QUICK)
    worker.task.cancel()
    await asyncio.gather(worker.task, return_exceptions=True)
    await worker.runtime.close("host:1")
    assert [(row["name"], row["pending"]) for row in sync.xinfo_consumers(COPIES, GROUP)] == [(b"host:1", 2)]


async def test_copies_are_handed_over_when_the_stream_can_not_be(redis: Any, sync: Any, every_server: Any) -> None:
    trimmed(sync, 2)
    assert await replay_all(redis) == ["replayed"] * 2
    sync.xreadgroup(GROUP, "host:0", {COPIES: ">"})
    sync.xgroup_destroy(STREAM, GROUP)

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None: ...

    worker = Worker(every_server.url, [handle], SharedState(), **QUICK)
    worker.task.cancel()
    await asyncio.gather(worker.task, return_exceptions=True)
    await worker.runtime.close("host:1")
    assert worker.faults and "NOGROUP" in str(worker.faults[0][1])
    assert [(row["name"], row["pending"]) for row in sync.xinfo_consumers(COPIES, GROUP)] == [(b"host:1", 2)]


async def test_unread_copies_count_for_the_number_of_workers(redis: Any, sync: Any, every_server: Any) -> None:
    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None: ...

    trimmed(sync, 5)
    assert await replay_all(redis) == ["replayed"] * 5
    sync.xreadgroup(GROUP, "host:0", {COPIES: ">"}, count=2)
    sync.xadd(STREAM, {"n": "unread"})
    settings = Settings(redis={"url": every_server.url}, pool={"host": "host"})  # type: ignore[arg-type]
    shared = SharedState()
    keeper = Keeper(settings, specs_of(settings, [handle]), shared, "token")
    await keeper._count_backlog()
    await keeper.close()
    assert shared.get(HeaderField.BACKLOG) == 3 + 1


async def test_a_keeper_takes_over_copies_of_the_dead(redis: Any, sync: Any, every_server: Any) -> None:
    ids = trimmed(sync, 5)
    assert await replay_all(redis) == ["replayed"] * 5
    sync.xreadgroup(GROUP, "host:7", {COPIES: ">"}, count=3)  # a slot that does not exist any more
    got: list[str] = []

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        got.append(message.id)

    shared = SharedState()
    shared.set(HeaderField.WORKERS, 1)
    shared.slot(0).set(SlotField.READY_NS, 1)
    await next_ms(redis)
    await Reaper(redis, "host", "token", shared, specs_of(Settings(), [handle]), FaultLog(Log())).look()
    assert [row["name"] for row in sync.xinfo_consumers(COPIES, GROUP)] == [b"host:0"]
    worker = Worker(every_server.url, [handle], shared, **QUICK)
    await eventually_async(lambda: sorted(got) == sorted(ids))
    await eventually_async(lambda: nothing_left(redis))
    await worker.stop()
