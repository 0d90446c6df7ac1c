"""Turns after faults: no message is stranded and no key stops, on one real server."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor import Message, Reject, handler
from supervisor.broker.command_connection import CommandConnection
from supervisor.broker.inspect import pending
from supervisor.broker.replay import drop, replay
from supervisor.broker.scripts import SETTLE_TURNS
from supervisor.broker.turns import Checked, Turns
from supervisor.keys import TURNS_CONSUMER
from supervisor.shared_state import SharedState
from supervisor.worker import turn_gate
from supervisor.worker.limited_consumer import LimitedConsumer
from supervisor.worker.pending import PendingList
from tests.redis.limited import GROUP, STREAM, is_held, nothing_left, pools
from tests.redis.worker import Worker
from tests.support.letters import letters
from tests.support.waiting import eventually_async


async def test_the_key_of_a_worker_that_vanished_goes_on_with_its_successor(redis: Any, redis_url: str) -> None:
    seen: list[str] = []
    blocked = asyncio.Event()

    @handler(STREAM, group=GROUP, key="customer")
    async def bill(message: Message) -> None:
        seen.append(message.fields["n"])
        if len(seen) == 1:
            blocked.set()
            await asyncio.sleep(3600)

    for n in range(50):
        await redis.xadd(STREAM, {"customer": "a", "n": n})
    shared = SharedState()
    first = Worker(redis_url, [bill], shared)
    await asyncio.wait_for(blocked.wait(), 30)
    await eventually_async(lambda: is_held(redis, 49))
    await first.vanish()
    second = Worker(redis_url, [bill], shared)
    await eventually_async(lambda: len(seen) == 51)
    assert seen == ["0", *map(str, range(50))]
    await second.stop()


async def test_a_turn_of_a_deleted_or_foreign_acked_message_is_passed_on(redis: Any, every_server: Any) -> None:
    seen: list[str] = []
    go_on = asyncio.Event()

    @handler(STREAM, group=GROUP, key="customer")
    async def bill(message: Message) -> None:
        seen.append(message.fields["n"])
        await go_on.wait()

    ids = [await redis.xadd(STREAM, {"customer": "a", "n": n}) for n in range(5)]
    shared = SharedState()
    first = Worker(every_server.url, [bill], shared)
    await eventually_async(lambda: seen == ["0"])
    await eventually_async(lambda: is_held(redis, 4))
    await first.vanish()
    await redis.xdel(STREAM, ids[0], ids[1])  # the one that has the turn, and the next one
    await redis.xack(STREAM, GROUP, ids[2])
    go_on.set()
    second = Worker(every_server.url, [bill], shared)
    await eventually_async(lambda: seen == ["0", "3", "4"])
    await eventually_async(lambda: nothing_left(redis))
    await second.stop()


async def test_a_turn_that_a_lost_answer_passed_on_is_not_lost(
    redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    lost: list[Checked] = []
    go_on = asyncio.Event()
    check = Turns.check

    async def loses_one(self: Turns, *arguments: Any) -> Checked:
        checked = await check(self, *arguments)
        if checked.taken and not lost:
            lost.append(checked)
            raise RedisConnectionError("lost after the script ran")
        return checked

    monkeypatch.setattr(Turns, "check", loses_one)
    monkeypatch.setattr(turn_gate, "LOOK_S", 0.02)
    monkeypatch.setattr(turn_gate, "_LOOK_IDLE_MS", 0)

    @handler(STREAM, group=GROUP, key="customer")
    async def bill(message: Message) -> None:
        seen.append(message.fields["n"])
        await go_on.wait()

    ids = [await redis.xadd(STREAM, {"customer": "a", "n": n}) for n in range(2)]
    async with pools(redis_url, bill, count=1):
        await eventually_async(lambda: is_held(redis, 1))
        await redis.xack(STREAM, GROUP, ids[0])
        await eventually_async(lambda: seen == ["0", "1"], 5)  # a later scan finds it in any case
        go_on.set()
        await eventually_async(lambda: nothing_left(redis))
    assert lost


async def test_a_turn_of_the_group_that_a_lost_answer_passed_on_is_not_lost(
    redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    lost: list[bytes] = []
    pipeline = CommandConnection.pipeline

    async def loses_one(self: CommandConnection, packed: Sequence[bytes]) -> list[Any]:
        replies = await pipeline(self, packed)
        if not lost and (found := [one for one in packed if SETTLE_TURNS.text.encode() in one]):
            lost.extend(found)
            raise RedisConnectionError("lost after the script ran")
        return replies

    monkeypatch.setattr(CommandConnection, "pipeline", loses_one)
    go_on = asyncio.Event()

    @handler(STREAM, group=GROUP, group_concurrency=1)
    async def bill(message: Message) -> None:
        seen.append(message.fields["n"])
        await go_on.wait()

    for n in range(2):
        await redis.xadd(STREAM, {"n": n})
    async with pools(redis_url, bill, count=1):
        await eventually_async(lambda: is_held(redis, 1))
        go_on.set()
        await eventually_async(lambda: seen == ["0", "1"], 5)  # a later scan finds it in any case
    assert lost


async def test_a_check_takes_no_message_without_a_key_that_another_worker_has_got(
    redis: Any, commands: CommandConnection
) -> None:
    ids = [await redis.xadd(STREAM, {"n": n}) for n in range(2)]
    await redis.xgroup_create(STREAM, GROUP, "0")
    await redis.xreadgroup(GROUP, TURNS_CONSUMER, {STREAM: ">"})
    first, second = (Turns(commands, STREAM, GROUP, f"host:{n}", per_key=1, per_group=0) for n in range(2))
    assert [one.entry for one in (await first.check([], [ids[0]])).taken] == ids[:1]
    assert [one.entry for one in (await second.check([], ids)).taken] == ids[1:]
    assert (await redis.xpending_range(STREAM, GROUP, ids[0], ids[0], 1))[0]["consumer"] == b"host:0"


async def test_what_has_its_turn_runs_when_the_next_read_cannot_be_sent(
    redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    failed: list[int] = []
    read_ahead = LimitedConsumer._read_ahead

    async def fails_once(self: LimitedConsumer, coming: int) -> None:
        if coming and not failed:
            failed.append(coming)
            raise RedisConnectionError("lost after the messages were given their turns")
        await read_ahead(self, coming)

    monkeypatch.setattr(LimitedConsumer, "_read_ahead", fails_once)

    @handler(STREAM, group=GROUP, key="customer", batch_size=4)
    async def bill(message: Message) -> None:
        started.append(message.fields["n"])

    for n in range(9):
        await redis.xadd(STREAM, {"customer": f"c{n}", "n": n})
    async with pools(redis_url, bill, count=1):
        await eventually_async(lambda: len(started) >= 9)
        await eventually_async(lambda: nothing_left(redis))
    assert failed and sorted(started) == [str(n) for n in range(9)]


async def test_what_a_scan_has_found_is_found_again_when_the_scan_fails(
    redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    failed: list[str] = []
    records = PendingList._records

    async def fails_once(self: PendingList, key: str, found: list[Message]) -> list[bytes | None]:
        if found and not failed:
            failed.append(key)
            raise RedisConnectionError("lost after the messages were given their turns")
        return await records(self, key, found)

    monkeypatch.setattr(PendingList, "_records", fails_once)

    @handler(STREAM, group=GROUP, key="customer")
    async def bill(message: Message) -> None:
        started.append(message.fields["n"])

    for n in range(4):
        await redis.xadd(STREAM, {"customer": f"c{n % 2}", "n": n})
    await redis.xgroup_create(STREAM, GROUP, "0")
    await redis.xreadgroup(GROUP, "host0:0", {STREAM: ">"})
    async with pools(redis_url, bill, count=1):
        await eventually_async(lambda: nothing_left(redis))
    assert failed and sorted(started) == ["0", "1", "2", "3"]


async def test_a_full_server_is_drained_by_a_handler_with_turns(every_server: Any) -> None:
    seen: list[str] = []

    @handler(STREAM, group=GROUP, key=lambda message: message.fields["customer"], group_concurrency=1)
    async def bill(message: Message) -> None:
        seen.append(message.fields["n"])

    async with every_server.client() as redis:
        for n in range(20):
            await redis.xadd(STREAM, {"customer": n % 3, "n": n})
        await redis.xgroup_create(STREAM, GROUP, "0")
        await redis.xreadgroup(GROUP, "host0:0", {STREAM: ">"}, count=5)
        await redis.config_set("maxmemory", 1)
        async with pools(every_server.url, bill, count=2):
            await eventually_async(lambda: len(seen) == 20)
            await eventually_async(lambda: nothing_left(redis))
        await redis.config_set("maxmemory", 0)


async def test_the_dead_letter_of_a_copy_takes_no_place_from_its_message(
    every_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group was made again while the copy ran: its message waits behind it, and nothing runs without that."""
    monkeypatch.setattr(turn_gate, "LOOK_S", 0.05)
    seen: list[str] = []
    copy_may_end, message_may_end = asyncio.Event(), asyncio.Event()

    @handler(STREAM, group=GROUP, key="customer", on_dead="halt")
    async def bill(message: Message) -> None:
        seen.append(message.fields["n"])
        if len(seen) == 2:
            await copy_may_end.wait()
        elif len(seen) == 3:
            await message_may_end.wait()
        if message.fields["n"] == "0":
            raise Reject("no")

    async with every_server.client() as redis, pools(every_server.url, bill, count=1):
        for n in range(2):
            await redis.xadd(STREAM, {"customer": "a", "n": n})
        await replay(redis, await eventually_async(lambda: letters(redis, STREAM, GROUP)))
        await eventually_async(lambda: seen == ["0", "0"])
        await redis.xgroup_destroy(STREAM, GROUP)
        await eventually_async(lambda: pending(redis, STREAM, GROUP))
        await eventually_async(lambda: is_held(redis, 2))
        copy_may_end.set()
        (first,) = await eventually_async(lambda: letters(redis, STREAM, GROUP))
        await eventually_async(lambda: seen == ["0", "0", "0"])
        message_may_end.set()
        _, second = await eventually_async(lambda: two_letters(redis))
        assert (first.halts, second.halts) == ("", "a")
        await drop(redis, [first])
        assert await is_held(redis, 1)
        await drop(redis, [second])
        await eventually_async(lambda: nothing_left(redis))
    assert seen == ["0", "0", "0", "1"]


async def two_letters(redis: Any) -> Any:
    found = await letters(redis, STREAM, GROUP)
    return found if len(found) == 2 else None


async def all_settled(redis: Any) -> bool:
    return not (await redis.xpending(STREAM, GROUP))["pending"]


@pytest.mark.parametrize("is_destroyed", [True, False])
async def test_the_messages_of_a_halted_key_that_are_read_again_run_in_order(
    redis: Any, redis_url: str, is_destroyed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_gate, "LOOK_S", 0.05)
    seen: list[str] = []
    is_fixed = False

    @handler(STREAM, group=GROUP, key="customer", on_dead="halt")
    async def bill(message: Message) -> None:
        seen.append(message.fields["n"])
        if message.fields["n"] == "1" and not is_fixed:
            raise Reject("not yet")

    for n in range(3):
        await redis.xadd(STREAM, {"customer": "a", "n": n})
    async with pools(redis_url, bill, count=1):
        found = await eventually_async(lambda: letters(redis, STREAM, GROUP))
        is_fixed = True
        await (redis.xgroup_destroy(STREAM, GROUP) if is_destroyed else redis.xgroup_setid(STREAM, GROUP, "0"))
        await redis.xadd(STREAM, {"customer": "a", "n": 3})
        await eventually_async(lambda: len(seen) == 6)
        await eventually_async(lambda: nothing_left(redis))
        await drop(redis, found)
    assert seen == ["0", "1", "0", "1", "2", "3"]


async def test_a_turn_that_comes_while_pending_lists_are_read_charges_nobody(redis: Any, redis_url: str) -> None:
    """What a predecessor had only read is not taken for a message that ran, because another one begins before it."""
    seen: list[str] = []
    shared = SharedState()

    @handler(STREAM, group=GROUP, key="customer", on_dead="halt")
    async def first_bill(message: Message) -> None:
        if message.fields["n"] == "1":
            raise Reject("no")
        await asyncio.sleep(3600)

    @handler(STREAM, group=GROUP, key="customer", on_dead="halt")
    async def bill(message: Message) -> None:
        seen.append(message.fields["n"])

    for n in range(3):
        await redis.xadd(STREAM, {"customer": "ab"[n > 0], "n": n})
    first = Worker(redis_url, [first_bill], shared)
    found = await eventually_async(lambda: letters(redis, STREAM, GROUP))
    await eventually_async(lambda: is_held(redis, 1))
    await first.vanish()
    await redis.xadd(STREAM, {"customer": "b", "n": 3})
    await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})
    await drop(redis, found)
    row: Any = shared.slot(0).consumer(STREAM, GROUP)
    row.set_started(0, 0)  # nothing ran when it died
    shared.slot(0).reset_for_new_worker()
    second = Worker(redis_url, [bill], shared, consumer={"max_crashes": 1})  # it gives 2 its turn, for the place of 3
    await eventually_async(lambda: all_settled(redis))
    await second.stop()
    assert [letter.reason for letter in await letters(redis, STREAM, GROUP)] == []
    assert sorted(seen) == ["0", "2", "3"]


async def test_a_worker_that_has_not_read_its_pending_lists_takes_no_turns(
    redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may not start them yet, and another worker may."""
    monkeypatch.setattr(turn_gate, "LOOK_S", 0.02)
    monkeypatch.setattr(turn_gate, "_LOOK_IDLE_MS", 0)
    seen: list[str] = []
    may_read = asyncio.Event()
    scan = PendingList.scan

    async def waits(self: PendingList, *arguments: Any) -> Any:
        await may_read.wait()
        return await scan(self, *arguments)

    @handler(STREAM, group=GROUP, key="customer")
    async def bill(message: Message) -> None:
        seen.append(message.fields["n"])
        await asyncio.sleep(3600 if len(seen) == 1 else 0)

    ids = [await redis.xadd(STREAM, {"customer": "a", "n": n}) for n in range(2)]
    shared = SharedState()
    first = Worker(redis_url, [bill], shared)
    await eventually_async(lambda: seen == ["0"])
    await eventually_async(lambda: is_held(redis, 1))
    await first.vanish()
    await redis.xack(STREAM, GROUP, ids[0])
    monkeypatch.setattr(PendingList, "scan", waits)
    second = Worker(redis_url, [bill], shared)
    await asyncio.sleep(0.3)  # it would have looked at the row, which passes the turn on
    was_held = await is_held(redis, 1)
    may_read.set()
    await eventually_async(lambda: nothing_left(redis))
    await second.stop()
    assert was_held and seen == ["0", "1"]
