"""The rate of a group: two workers' runtimes, or more, on one real server."""

import asyncio
import time
from collections import defaultdict
from typing import Any

import pytest

from supervisor import Message, handler
from supervisor.broker.command_connection import CommandConnection
from supervisor.broker.inspect import groups
from supervisor.broker.rates import Rates, Request
from supervisor.core.rate import parse_rate
from supervisor.keys import before_change, due_key, rates_key
from supervisor.shared_state import SharedState
from supervisor.worker import rate_gate
from supervisor.worker.pending import PendingList
from tests.redis.limited import GROUP, STREAM, nothing_left, pools
from tests.redis.worker import Worker
from tests.support.waiting import eventually_async


async def calls_us(redis: Any, *names: bytes) -> tuple[int, int, int]:
    """How often these commands ran since the slow log was emptied, and the us that a slow one and all of them took.

    A slow one is slower than nine in ten: the slowest may have met another process.
    """
    rows = await redis.slowlog_get(10_000)
    took = sorted(row["duration"] for row in rows if row["command"].split()[0].upper() in names)
    return len(took), took[len(took) * 9 // 10], sum(took)


async def test_a_rate_holds_on_all_workers_and_one_key_at_its_limit_holds_up_no_other(
    redis: Any, redis_url: str
) -> None:
    starts: dict[str, list[float]] = defaultdict(list)
    attempts: set[int] = set()

    @handler(STREAM, group=GROUP, rate="20/s", rate_key="tenant", max_deliveries=1)
    async def call(message: Message) -> None:
        starts[message.fields["tenant"]].append(time.monotonic())
        attempts.add(message.deliveries)

    for _ in range(30):
        await redis.xadd(STREAM, {"tenant": "a"})
    await redis.xadd(STREAM, {"tenant": "b"})
    began_s = time.monotonic()
    async with pools(redis_url, call):
        await eventually_async(lambda: len(starts["a"]) == 30)
        await eventually_async(lambda: nothing_left(redis))
    assert attempts == {1}
    assert len(starts["b"]) == 1 and starts["b"][0] < starts["a"][-1]
    # From the beginning, since a message may start late: 2 are the burst.
    assert starts["a"][-1] - began_s > 27 / 20


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.long)])
async def test_a_changed_rate_holds_up_the_server_for_a_short_time_only(
    redis: Any, commands: CommandConnection, count: int
) -> None:
    due, kept = due_key(STREAM, GROUP), rates_key(STREAM, GROUP)
    await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    now_ms = int((await redis.time())[0]) * 1000
    for first in range(0, count, 1_000):
        numbers = range(first, first + 1_000)
        await redis.zadd(due, {f"{n}-0": now_ms + 1_000_000 + 10 * n for n in numbers})
        await redis.zadd(kept, {f":tenant {n}": (now_ms + 1_000_000 + 10 * n) * 1000 for n in numbers})
    await Rates(commands, STREAM, GROUP, "host:0", parse_rate("10/s")).begin()
    await redis.config_set("slowlog-log-slower-than", 0)
    await redis.config_set("slowlog-max-len", 10_000)
    await redis.slowlog_reset()
    faster = Rates(commands, STREAM, GROUP, "host:0", parse_rate("100/s"))
    assert await faster.change(1_000) == 2 * (count - 1_000)
    assert 0 < await redis.zcard(due) < count, "a process that dies now leaves the rest"
    flags, _ = await faster.reserve([Request(b"1-1", b"tenant 4999", 1)], replays=False)
    assert flags == [False], "what is not changed yet is known as well"
    await redis.zrem(due, "1-1")
    await faster.begin()
    calls, slow_us, every_us = await calls_us(redis, b"EVAL", b"EVALSHA")
    assert calls > count / 1_000, "in bites"
    if count >= 100_000:  # of a few calls, one that had to wait for the CPU may take most
        assert slow_us < every_us / 20
    scores = [score for _, score in await redis.zrange(due, 0, -1, withscores=True)]
    assert len(scores) == count and await redis.zcard(kept) == count
    assert scores[0] - now_ms < 200_000 and scores[-1] - scores[0] == pytest.approx(count - 1, abs=200)
    assert not await redis.exists(before_change(due), before_change(kept))


@pytest.mark.parametrize("rate_key", ["", "tenant"])
async def test_what_waits_starts_by_the_rate_that_was_changed(redis: Any, redis_url: str, rate_key: str) -> None:
    started: list[str] = []

    def at(rate: str) -> Worker:
        @handler(STREAM, group=GROUP, rate=rate, rate_key=rate_key)
        async def call(message: Message) -> None:
            started.append(message.fields["n"])

        return Worker(redis_url, [call], SharedState())

    async def is_reserved() -> bool:
        (info,) = await groups(redis, [(STREAM, GROUP)])
        return info.waiting_rate >= 29

    for n in range(30):
        await redis.xadd(STREAM, {"tenant": "a*", "n": n})
    first = at("10/h")
    await eventually_async(is_reserved)
    await first.stop()
    second = at("100/s")
    await eventually_async(lambda: len(started) == 30, 8)  # no message that arrives has to wake the worker
    await redis.xadd(STREAM, {"tenant": "a*", "n": 30})
    await eventually_async(lambda: len(started) == 31)
    await second.stop()
    assert started == [str(n) for n in range(31)]


async def test_a_change_of_a_rate_that_stopped_half_way_is_ended_by_any_worker(
    redis: Any, redis_url: str, commands: CommandConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_gate, "_LOOK_S", 0.05)
    started: list[str] = []
    due = due_key(STREAM, GROUP)

    @handler(STREAM, group=GROUP, rate="1/h")
    async def call(message: Message) -> None:
        started.append(message.fields["n"])

    async def all_wait() -> bool:
        return int(await redis.zcard(due)) == 4

    for n in range(5):
        await redis.xadd(STREAM, {"n": n})
    async with pools(redis_url, call, count=1):
        await eventually_async(all_wait)
        monkeypatch.delattr(Rates, "begin")  # no scan does it
        assert await Rates(commands, STREAM, GROUP, "host9:0", parse_rate("100/s")).change(1) == 3
        await eventually_async(lambda: len(started) == 5)
        assert not await redis.exists(before_change(due))


async def test_a_worker_with_a_rate_takes_no_message_that_another_one_has_got(redis: Any, redis_url: str) -> None:
    ran: list[str] = []

    @handler(STREAM, group=GROUP, rate="1/s")
    async def call(message: Message) -> None:
        ran.append(message.fields["n"])

    async def is_waiting() -> bool:
        (info,) = await groups(redis, [(STREAM, GROUP)])
        return info.waiting_rate == 2

    ids = [await redis.xadd(STREAM, {"n": n}) for n in range(3)]
    worker = Worker(redis_url, [call], SharedState())
    await eventually_async(is_waiting)
    await redis.xclaim(STREAM, GROUP, "host:9", 0, [ids[1]])  # as a keeper does after the option was removed
    await eventually_async(lambda: ran[1:])
    await worker.stop()
    assert ran == ["0", "2"]


async def test_a_rate_counts_retries_and_survives_workers(redis: Any, redis_url: str) -> None:
    started: list[tuple[str, int]] = []

    @handler(STREAM, group=GROUP, key="customer", rate="10/s", retry_base_s=0.01)
    async def call(message: Message) -> None:
        started.append((message.fields["n"], message.deliveries))
        if message.fields["n"] == "1" and message.deliveries == 1:
            raise ValueError("once")

    for n in range(6):
        await redis.xadd(STREAM, {"customer": "a", "n": n})
    shared = SharedState()
    first = Worker(redis_url, [call], shared)
    began_s = time.monotonic()
    await eventually_async(lambda: len(started) >= 3)
    await first.vanish()
    second = Worker(redis_url, [call], shared)
    await eventually_async(lambda: nothing_left(redis))
    await second.stop()
    assert list(dict.fromkeys(started)) == [
        ("0", 1),
        ("1", 1),
        ("1", 2),
        *((str(n), 1) for n in range(2, 6)),
    ]
    assert time.monotonic() - began_s > 0.5


async def test_what_starts_and_ends_during_a_scan_is_not_run_again(
    redis: Any, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    scans: list[Any] = []
    may_end = asyncio.Event()
    read_all, records = PendingList._read_all, PendingList._records

    @handler(STREAM, group=GROUP, rate="10/s")
    async def call(message: Message) -> None:
        started.append(message.fields["n"])
        await may_end.wait()

    async def reads_later(self: PendingList, *arguments: Any) -> list[Message]:
        if self.opened:
            await eventually_async(lambda: len(started) == 2)
        found = await read_all(self, *arguments)
        if self.opened:
            may_end.set()
            scans.append(found)
        return found

    async def looks_later(self: PendingList, key: str, found: list[Message]) -> list[bytes | None]:
        if found:
            await eventually_async(lambda: nothing_left(redis))
            await redis.delete(rates_key(STREAM, GROUP))  # the rate would let it start again by now
        return await records(self, key, found)

    monkeypatch.setattr(PendingList, "_read_all", reads_later)
    monkeypatch.setattr(PendingList, "_records", looks_later)
    worker = Worker(redis_url, [call], SharedState())
    await asyncio.wait_for(worker.ready.wait(), 30)
    for n in range(2):
        await redis.xadd(STREAM, {"n": n})
    await eventually_async(lambda: redis.exists(due_key(STREAM, GROUP)))
    await worker.runtime.consumers[0]._find_again()  # type: ignore[attr-defined]
    await eventually_async(lambda: len(scans) == 2)
    await redis.xadd(STREAM, {"n": 2})
    await eventually_async(lambda: "2" in started)
    await worker.stop()
    assert any(scans) and started == ["0", "1", "2"]


async def test_what_became_due_while_nobody_took_it_does_not_start_at_once(redis: Any, redis_url: str) -> None:
    started: list[float] = []

    @handler(STREAM, group=GROUP, rate="20/s")
    async def call(message: Message) -> None:
        started.append(time.monotonic())

    async def is_reserved() -> bool:
        (info,) = await groups(redis, [(STREAM, GROUP)])
        return info.waiting_rate > 20

    for n in range(30):
        await redis.xadd(STREAM, {"n": n})
    first = Worker(redis_url, [call], SharedState())
    await eventually_async(is_reserved)
    await first.stop()
    before = len(started)
    for name, due_ms in await redis.zrange(due_key(STREAM, GROUP), 0, -1, withscores=True):  # an hour passes
        await redis.zadd(due_key(STREAM, GROUP), {name: due_ms - 3_600_000})
    began_s = time.monotonic()
    second = Worker(redis_url, [call], SharedState())
    await eventually_async(lambda: len(started) == 30)
    await second.stop()
    # From the beginning, since a message may start late: 2 are the burst.
    assert started[-1] - began_s > (30 - before - 3) / 20


async def test_the_times_of_a_rate_are_kept_while_messages_wait(redis: Any, commands: CommandConnection) -> None:
    due, kept = due_key(STREAM, GROUP), rates_key(STREAM, GROUP)
    await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    rates = Rates(commands, STREAM, GROUP, "host:0", parse_rate("1/m"))
    await rates.begin()
    flags, _ = await rates.reserve([Request(b"%d-1" % n, None, 1) for n in range(3)], replays=False)
    assert flags == [True, False, False] and await redis.ttl(kept) == -1, "an outage may last longer than they do"
    slower = Rates(commands, STREAM, GROUP, "host:0", parse_rate("1/h"))
    await slower.begin()
    assert await redis.ttl(kept) == -1
    for name in await redis.zrange(due, 0, -1):
        await redis.zadd(due, {name: int((await redis.time())[0]) * 1000})
    assert (await slower.take_due(-1)).waiting == 2, "a paused worker has more in hand than it may"
    assert not (await slower.take_due(9)).taken and not await redis.exists(due)
    assert 7_000 < await redis.ttl(kept) < 11_000
    await rates.begin()
    assert 0 < await redis.ttl(kept) < 200
