"""Order by key and limits over a group: two workers' runtimes, or more, on one real server."""

import asyncio
from typing import Any

import pytest
import structlog

from supervisor import Message, Reject, handler
from supervisor.broker.entry_lookup import collect
from supervisor.broker.inspect import groups, pending
from supervisor.broker.replay import REPLAYED, drop, replay
from supervisor.core.entry_fate import Fate, TurnFact, explain
from supervisor.handling.loader import specs_of
from supervisor.keeper.reaper import Reaper
from supervisor.keys import RATES_CONSUMER, dead_key, message_keys_key
from supervisor.log import FaultLog
from supervisor.settings.model import Settings
from supervisor.shared_state import HeaderField, SharedState, SlotField
from supervisor.worker import turn_gate
from tests.redis.limited import GROUP, ROW, STREAM, Log, fields, in_order, is_held, is_missing, nothing_left, pools
from tests.redis.worker import Worker
from tests.support.letters import letters
from tests.support.waiting import eventually_async


async def test_messages_of_a_key_run_one_after_another_in_order_on_all_workers(every_server: Any) -> None:
    log = Log()

    @handler(STREAM, group=GROUP, key="customer")
    async def bill(message: Message) -> None:
        await log.run(message, lambda: asyncio.sleep(0.001))

    async with every_server.client() as redis:
        for n in range(600):
            await redis.xadd(STREAM, {"customer": f"c{n % 20}", "n": n})
        async with pools(every_server.url, bill):
            await eventually_async(lambda: log.done == 600)
            for n in range(100):
                await redis.xadd(STREAM, {"customer": f"c{n % 20}", "n": n})
            await eventually_async(lambda: log.done == 700)
        assert await nothing_left(redis)
    assert all(log.together[f"c{n}"] == 1 for n in range(20))
    assert all(in_order(log.started[f"c{n}"]) for n in range(20))


async def test_a_message_that_has_waited_was_delivered_once(redis: Any, redis_url: str) -> None:
    started: list[str] = []
    may_end = asyncio.Event()

    @handler(STREAM, group=GROUP, key="customer")
    async def bill(message: Message) -> None:
        started.append(message.id)
        if len(started) == 2:
            await may_end.wait()

    for n in range(3):
        await redis.xadd(STREAM, {"customer": "c", "n": n})
    async with pools(redis_url, bill, count=2):
        await eventually_async(lambda: len(started) == 2)
        await eventually_async(lambda: is_held(redis, 1))
        rows = await redis.xpending_range(STREAM, GROUP, "-", "+", 9)
        assert [row["times_delivered"] for row in rows] == [1, 1]
        may_end.set()
        await eventually_async(lambda: nothing_left(redis))


async def test_a_key_for_which_nothing_waits_has_no_sorted_set(redis: Any, redis_url: str) -> None:
    started: list[str] = []
    go_on = asyncio.Event()

    @handler(STREAM, group=GROUP, key="customer")
    async def bill(message: Message) -> None:
        started.append(message.fields.get("customer", ""))
        await go_on.wait()

    for n in range(40):
        await redis.xadd(STREAM, {"customer": f"c{n}"})
    await redis.xadd(STREAM, {"other": "no key"})
    async with pools(redis_url, bill, count=2):
        await eventually_async(lambda: len(started) == 41)
        assert sorted(await fields(redis)) == sorted(f":c{n}".encode() for n in range(40))
        assert not [key async for key in redis.scan_iter(f"{ROW}*")]
        await redis.xadd(STREAM, {"customer": "c7"})
        await eventually_async(lambda: is_held(redis, 1))
        assert [key async for key in redis.scan_iter(f"{ROW}*")] == [f"{ROW}c7".encode()]
        go_on.set()
        await eventually_async(lambda: len(started) == 42)
        await eventually_async(lambda: nothing_left(redis))


async def test_more_of_a_key_run_at_once_with_per_key_and_never_more(redis: Any, redis_url: str) -> None:
    log = Log()

    @handler(STREAM, group=GROUP, key=lambda message: message.fields["customer"], per_key=3)
    async def bill(message: Message) -> None:
        await log.run(message, lambda: asyncio.sleep(0.005))

    for n in range(90):
        await redis.xadd(STREAM, {"customer": f"c{n % 2}"})
    async with pools(redis_url, bill):
        await eventually_async(lambda: log.done == 90)
    assert log.together["c0"] == log.together["c1"] == 3


@pytest.mark.parametrize("key", ["", "customer"])
async def test_group_concurrency_limits_all_workers_together(
    redis: Any, redis_url: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_gate, "_ADMITTED_MAX", 7)  # a batch is admitted in parts
    log = Log()

    @handler(STREAM, group=GROUP, key=key, group_concurrency=4)
    async def bill(message: Message) -> None:
        await log.run(message, lambda: asyncio.sleep(0.005))

    for n in range(100):
        await redis.xadd(STREAM, {"customer": f"c{n % 10}"})
    async with pools(redis_url, bill):
        await eventually_async(lambda: log.done == 100)
    assert log.together["all"] == 4
    assert await nothing_left(redis)
    if key:
        assert all(log.together[f"c{n}"] == 1 and in_order(log.started[f"c{n}"]) for n in range(10))


async def test_a_failing_message_holds_up_its_own_key_only(redis: Any, redis_url: str) -> None:
    seen: list[tuple[str, str, int]] = []
    b_is_done = asyncio.Event()

    @handler(STREAM, group=GROUP, key="customer", retry_base_s=0.2, max_deliveries=2)
    async def bill(message: Message) -> None:
        seen.append((message.fields["customer"], message.fields["n"], message.deliveries))
        if [one[0] for one in seen].count("b") == 3:
            b_is_done.set()
        if message.fields["n"] == "0":
            if message.deliveries == 2:
                await b_is_done.wait()
            raise ValueError("no")

    for n in range(3):
        for customer in ("a", "b"):
            await redis.xadd(STREAM, {"customer": customer, "n": n if customer == "a" else n + 1})
    async with pools(redis_url, bill):
        await eventually_async(lambda: len(seen) == 7)
    assert [one[1:] for one in seen if one[0] == "a"] == [("0", 1), ("0", 2), ("1", 1), ("2", 1)]


@pytest.mark.parametrize("release", [replay, drop])
async def test_a_dead_letter_halts_its_key_until_it_is_released(redis: Any, redis_url: str, release: Any) -> None:
    seen: list[str] = []
    fixed = False

    @handler(STREAM, group=GROUP, key="customer", on_dead="halt")
    async def bill(message: Message) -> None:
        if message.fields["n"] == "0" and not fixed:
            raise Reject("not yet")
        seen.append(message.fields["customer"] + message.fields["n"])

    for n in range(3):
        for customer in ("a", "b"):
            await redis.xadd(STREAM, {"customer": customer, "n": n if customer == "a" else n + 1})
    async with pools(redis_url, bill, count=2):
        await eventually_async(lambda: len(seen) == 3)
        (letter,) = await eventually_async(lambda: letters(redis, STREAM, GROUP))
        assert seen == ["b1", "b2", "b3"]
        fixed = True
        assert letter.halts == "a"
        await release(redis, [letter])
        rest = ["a0", "a1", "a2"] if release is replay else ["a1", "a2"]
        await eventually_async(lambda: seen[3:] == rest)
        await eventually_async(lambda: nothing_left(redis))


@pytest.mark.parametrize("key", ["customer", lambda message: message.fields["customer"]])
async def test_nothing_is_kept_about_messages_that_another_program_acked(
    redis: Any, redis_url: str, key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn_gate, "LOOK_S", 0.05)
    started = asyncio.Event()

    @handler(STREAM, group=GROUP, key=key)
    async def bill(message: Message) -> None:
        started.set()
        await asyncio.sleep(3600)

    ids = [await redis.xadd(STREAM, {"customer": name}) for name in "abb"]
    first = Worker(redis_url, [bill], SharedState())
    await eventually_async(lambda: is_held(redis, 1))
    await asyncio.wait_for(started.wait(), 30)
    await first.vanish()
    await redis.xack(STREAM, GROUP, *ids)
    assert await fields(redis)
    async with pools(redis_url, bill, count=1):
        await eventually_async(lambda: nothing_left(redis))
        await eventually_async(lambda: is_missing(redis, message_keys_key(STREAM, GROUP)))


async def test_explain_says_whose_turn_it_is_and_until_when_a_rate_holds(redis: Any, redis_url: str) -> None:
    go_on = asyncio.Event()

    @handler(STREAM, group=GROUP, key="customer")
    async def bill(message: Message) -> None:
        await go_on.wait()

    @handler("calls", group=GROUP, rate="1/h")
    async def call(message: Message) -> None: ...

    ids = [(await redis.xadd(STREAM, {"customer": "a"})).decode() for _ in range(4)]
    calls = [(await redis.xadd("calls", {"n": n})).decode() for n in range(2)]
    worker = Worker(redis_url, [bill, call], SharedState())
    await eventually_async(lambda: is_held(redis, 3))
    (one,) = explain(*await collect(redis, STREAM, ids[3])).groups
    assert one.fate == Fate.WAITING_TURN and one.facts.turn == TurnFact("a", ((ids[0], "host:0"),), 2)

    async def of_call() -> Any:
        (one,) = explain(*await collect(redis, "calls", calls[1])).groups
        return one if one.fate == Fate.WAITING_RATE else None

    waits = await eventually_async(of_call)
    now_ms = int((await redis.time())[0]) * 1000
    assert 3_590_000 < waits.facts.next_due_ms - now_ms < 3_602_000
    (info,) = await groups(redis, [("calls", GROUP)])
    assert (info.waiting_rate, info.consumers) == (1, 1)
    assert [one.next_due_ms for one in await pending(redis, "calls", GROUP)] == [waits.facts.next_due_ms]
    await redis.xadd(dead_key("calls", GROUP), {"id": "1-1", "field:n": 2})
    assert [outcome.outcome for outcome in await replay(redis, await letters(redis, "calls", GROUP))] == [REPLAYED]

    async def of_copy() -> Any:
        (*_, one) = await pending(redis, "calls", GROUP)
        return one if one.consumer == RATES_CONSUMER and one.id == "1-1" else None

    copy = await eventually_async(of_copy)
    (one,) = explain(*await collect(redis, "calls", "1-1")).groups
    assert copy.next_due_ms == one.facts.next_due_ms > waits.facts.next_due_ms
    go_on.set()
    await worker.stop()


async def test_explain_names_the_holder_where_a_function_makes_the_keys(redis: Any, redis_url: str) -> None:
    go_on = asyncio.Event()

    @handler(STREAM, group=GROUP, key=lambda message: message.fields["customer"].lower())
    async def bill(message: Message) -> None:
        await go_on.wait()

    ids = [(await redis.xadd(STREAM, {"customer": name})).decode() for name in ("A", "b", "a", "A")]
    async with pools(redis_url, bill, count=1):
        await eventually_async(lambda: is_held(redis, 2))
        (one,) = explain(*await collect(redis, STREAM, ids[3])).groups
        assert one.fate == Fate.WAITING_TURN and one.facts.turn == TurnFact("a", ((ids[0], "host0:0"),), 1)
        go_on.set()
        await eventually_async(lambda: nothing_left(redis))
        await eventually_async(lambda: is_missing(redis, message_keys_key(STREAM, GROUP)))


async def no_keys(message: Message) -> None: ...


async def test_what_waited_is_given_to_workers_when_the_handler_has_no_key_any_more(redis: Any, redis_url: str) -> None:
    @handler(STREAM, group=GROUP, key="customer")
    async def bill(message: Message) -> None:
        await asyncio.sleep(3600)

    for _ in range(3):
        await redis.xadd(STREAM, {"customer": "a"})
    worker = Worker(redis_url, [bill], SharedState())
    await eventually_async(lambda: is_held(redis, 2))
    await worker.vanish()
    shared = SharedState()
    shared.set(HeaderField.WORKERS, 1)
    shared.slot(0).set(SlotField.READY_NS, 1)
    specs = specs_of(Settings(), [handler(STREAM, group=GROUP)(no_keys)])
    reaper = Reaper(redis, "host", "token", shared, specs, FaultLog(structlog.get_logger()))
    await reaper.look()
    assert await is_held(redis, 0)
    assert shared.slot(0).get(SlotField.RESCAN_PENDING) > 0
