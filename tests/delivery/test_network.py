"""Cases 22 to 25: a network that resets, swallows and delays, and callers that give up."""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis as redis_py

from supervisor.errors import PublishError
from supervisor.publisher import Publisher
from tests.delivery.case import HOST, Case
from tests.delivery.checker import rate_per_s
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

StartCase = Callable[..., Case]
MakeCase = Callable[..., Case]
BLOCK_MS = 500
#: How much longer than its BLOCK a read is waited for.
SLACK_S = 3.0
RTT_S = 0.2
KEYED = 2000
CANCELLED = 10_000


@pytest.fixture
def behind(make_case: MakeCase) -> Iterator[Callable[..., tuple[Case, Proxy]]]:
    """A case whose pool reaches Redis through a proxy: `behind(...)`; nothing is started."""
    made: list[Proxy] = []

    def make(**options: Any) -> tuple[Case, Proxy]:
        case = make_case(more=f"[consumer]\nblock_ms = {BLOCK_MS}\n", **options)
        made.append(Proxy(case.url))
        return case, made[-1]

    yield make
    for proxy in made:
        proxy.close()


async def publish_keyed(url: str, stream: str) -> None:
    """Publish each message under a key, and again until its reply comes."""
    async with Publisher(url, timeout_s=1.0) as publisher:

        async def one(n: int) -> None:
            while True:
                with suppress(PublishError):
                    await publisher.publish(stream, {"n": n}, key=str(n))
                    return
                await asyncio.sleep(0.01)

        for first in range(0, KEYED, 200):
            await asyncio.gather(*(one(n) for n in range(first, first + 200)))


def test_22_rst_in_a_pipeline(behind: Callable[..., tuple[Case, Proxy]]) -> None:
    case, proxy = behind(load_s=60.0)  # ended when all is done: without a load, little goes over a connection
    case.start(pool_url=proxy.url)
    before = case.pool.pids()
    case.until(0.3)
    for turn in range(10):
        proxy.set(reset_after=case.rng.randrange(500, 20_000), reset_in=("request", "reply")[turn % 2])
        eventually(lambda turn=turn: proxy.did["reset in the middle"] > turn, interval_s=0.002)
        proxy.set()
    case.struck("connections were reset in the middle", proxy.did["reset in the middle"] >= 10)
    # The same for a producer whose publishes carry keys.
    resets = proxy.did["reset in the middle"]
    proxy.set(reset_after=15_000, reset_in="reply", fits=lambda connection: connection.name == "supervisor-publisher")
    asyncio.run(publish_keyed(proxy.url, "keyed"))
    proxy.set()
    case.struck("a publisher's connection was reset", proxy.did["reset in the middle"] > resets)
    stored = [fields[b"n"] for _, fields in case.redis.xrange("keyed")]
    case.check("stored twice under one key", len(stored) - len(set(stored)), 0, "")
    assert len(set(stored)) == KEYED
    assert case.pool.pids() == before and not case.pool.events("worker exited")
    case.until(case.load.elapsed_s + 1)  # the recovery is seen by what is published
    case.load.end()
    case.finish(repeated_max=0, recover_ms=2000)


def complaints_of(case: Case, slot: int) -> list[dict[str, Any]]:
    return [line for line in case.pool.events("can't read") if line["slot"] == slot]


def round_trip_s(proxy: Proxy) -> float:
    """The parts of a round trip: the way there, the server, and the way back."""
    times = []
    with redis_py.Redis.from_url(proxy.url, single_connection_client=True) as client:
        for _ in range(9):
            began_s = time.monotonic()
            client.ping()
            times.append(time.monotonic() - began_s)
    return statistics.median(times)


@pytest.mark.long
def test_23_black_hole(behind: Callable[..., tuple[Case, Proxy]]) -> None:
    case, proxy = behind(load_s=8.0)
    case.start(pool_url=proxy.url)
    before = case.pool.pids()
    case.moment(0.05, 0.15)
    slot = case.busy_slot(in_hand=2)
    swallowed = proxy.swallow(f"supervisor-{HOST}:{slot}")
    struck_ns = time.monotonic_ns()
    case.struck("a worker's connections became a black hole", swallowed >= 2 and slot in before, struck_ns)
    [told] = eventually(lambda: [line for line in case.pool.events("can't read") if line["slot"] == slot])
    took_ms = (time.monotonic_ns() - struck_ns) / 1e6
    case.check("a black hole is noticed", took_ms, BLOCK_MS + 1000 * SLACK_S + 500)
    assert told["error"].startswith("TimeoutError")
    assert case.pool.pids() == before
    # What was done and could not be acked is known to its worker; what it never got runs once it has a connection.
    case.finish(repeated_max=0, recover_ms=BLOCK_MS + 1000 * SLACK_S + 3000)
    assert proxy.did["swallowed bytes"] > 0


@pytest.mark.long
def test_24_latency_and_slices(behind: Callable[..., tuple[Case, Proxy]]) -> None:
    case, proxy = behind(work_ms=0.0, load_s=1.0)
    case.publish(16_000)
    proxy.set(latency_s=RTT_S / 2, jitter=0.2)
    case.start_pool(proxy.url)
    eventually(lambda: len(case.recording().ends) > 15_000, 60, 0.2)
    case.struck("everything was delayed", proxy.did["delayed"] > 100)
    times_ns = sorted(effect.at_ns for effect in case.recording().ends)
    rate = rate_per_s(case.recording().ends, times_ns[3_000], times_ns[13_000])
    rtt_s = round_trip_s(proxy)
    case.struck("a round trip takes its time", rtt_s >= RTT_S * 0.8)
    ideal = case.setting.workers * 100 / rtt_s
    case.figure(f"share of {ideal:.0f} messages a second that is missed", 100 * (1 - rate / ideal), "%")
    assert rate > case.setting.workers * 20 / rtt_s, "many messages for each round trip"
    # Byte by byte, for as long as this proxy can keep up.
    proxy.set(latency_s=RTT_S / 2, jitter=0.2, slice_bytes=1)
    for n in range(200):
        case.redis.xadd("events", {"n": 16_000 + n, "work_ms": 0})
        case.load.attempts[16_000 + n] = time.monotonic_ns()
        case.load.sent[16_000 + n] = {}
    eventually(lambda: len(case.recording().ends) == 16_200, 60, 1.0)
    case.struck("everything was cut into bytes", proxy.did["slices"] > 10_000)
    assert not [line for name in ("can't settle", "can't read") for line in case.pool.events(name)]
    case.finish(repeated_max=0)


@pytest.mark.long
def test_25_cancelled_publishes(make_case: MakeCase) -> None:
    case = make_case(load_s=1.0)

    async def publish() -> tuple[int, int, int]:
        crossed = done = cancelled = 0
        async with Publisher(case.url) as publisher:
            for first in range(0, CANCELLED, 100):
                tasks = [asyncio.create_task(publisher.publish("events", {"n": first + n})) for n in range(100)]
                for task in case.rng.sample(tasks, 60):
                    asyncio.get_running_loop().call_later(case.rng.random() * 0.002, task.cancel)
                for n, result in enumerate(await asyncio.gather(*tasks, return_exceptions=True)):
                    if isinstance(result, asyncio.CancelledError):
                        cancelled += 1
                        continue
                    assert not isinstance(result, BaseException), result
                    done += 1
                    [(_, fields)] = case.redis.xrange("events", result.id, result.id)
                    crossed += fields[b"n"] != b"%d" % (first + n)
            assert len([row for row in case.redis.client_list() if row["name"] == "supervisor-publisher"]) == 1
        return crossed, done, cancelled

    before = len(case.redis.client_list())
    crossed, done, cancelled = asyncio.run(publish())
    print(f"{done} done, {cancelled} cancelled")
    assert done + cancelled == CANCELLED and cancelled > CANCELLED / 10 and done > CANCELLED / 10
    case.check("answers that were another's", crossed, 0, "")
    eventually(lambda: len(case.redis.client_list()) == before)
