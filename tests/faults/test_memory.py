"""Workers that take too much memory: killed by the kernel, recycled in time, or wrongly suspected."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from tests.support.cgroups import MemoryGroup, memory_group
from tests.support.faults import Bounds, incarnations, ready_again_ms, shared_state_of
from tests.support.pool import Pool
from tests.support.recording import RECORD, seen, times_ns
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
MEGABYTE = 1_000_000


@pytest.fixture
def cgroup() -> Iterator[MemoryGroup]:
    with memory_group() as made:
        yield made


def test_18_oom_kill_cgroup(cgroup: MemoryGroup, start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(
        RECORD
        + """
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        if not os.path.exists("eaten"):
            open("eaten", "w").close()
            record("eats")
            kept = []
            while True:
                kept.append(b"x" * 1_000_000)
        record(message.fields["n"])
""",
        redis_url=redis_server.url,
        workers=2,
    )
    for process in pool.processes():  # all of them: the kernel chooses
        cgroup.take(process.pid)
    cgroup.limit(200 * MEGABYTE)
    shared, before, arbiter = shared_state_of(pool.pid), pool.pids(), pool.pid
    was = incarnations(shared, [0, 1])
    redis_server.sync().xadd("events", {"n": 1})
    line = eventually(lambda: pool.events("worker exited"), 20)[0]
    assert cgroup.oom_kills() == 1
    assert line["signal"] == "SIGKILL" and line["reason"] == "signal"
    assert line["likely_cause"] == "the kernel's out-of-memory killer" and line["last_started"]
    took_ms = ready_again_ms(shared, {line["slot"]: was[line["slot"]]}, times_ns(pool, "eats")[0])[line["slot"]]
    bound.check("first allocation of 200 MB until another is READY", took_ms, 2000)
    eventually(lambda: seen(pool)["1"] == 1, what="the message ran again")
    status = pool.wait_ready()
    assert status["pid"] == arbiter and pool.pids()[1 - line["slot"]] == before[1 - line["slot"]]
    assert all(service["restarts"] == 0 for service in status["services"])


@pytest.mark.long
def test_19_memory_leak(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(
        RECORD
        + """
    KEPT = []
    @handler("events", group="workers", batch_size=1, concurrency=1)
    async def handle(message: Message) -> None:
        record(message.fields["n"])
        time.sleep(0.01)
        KEPT.append(b"x" * 300_000)
""",
        redis_url=redis_server.url,
        workers=3,
        config="[pool]\nrecycle_growth_mb = 30\n",
    )
    redis = redis_server.sync()
    leaked_s = time.monotonic()
    count = 0

    def is_recycled() -> bool:
        nonlocal count  # a little work all the time, in three hands
        for _ in range(15):
            redis.xadd("events", {"n": count})
            count += 1
        return all(worker["restarts"] for worker in pool.ask("status")["workers"])

    eventually(is_recycled, 60, 0.1)
    bound.check("start of the leak until the last of three was recycled", (time.monotonic() - leaked_s) * 1000, 15000)
    news = [
        (line["timestamp"], line["event"], line["slot"])
        for name in ("recycling worker", "worker exited", "worker ready")
        for line in pool.events(name)
    ]
    slots = [slot for _, _, slot in sorted(news)]
    assert [event for _, event, _ in sorted(news)][:6] == ["recycling worker", "worker exited", "worker ready"] * 2
    assert all(slots[n] == slots[n + 1] == slots[n + 2] for n in range(0, 6, 3)), "one slot at a time"
    for line in pool.events("recycling worker"):
        assert line["reason"] == "memory" and line["growth_mb"] >= 30
    assert {line["reason"] for line in pool.events("worker exited")} == {"drained"}
    eventually(lambda: seen(pool) == {str(n): 1 for n in range(count)}, 20)
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)


@pytest.mark.long
def test_20_fat_parent_no_recycle_loop(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(
        RECORD
        + """
    # Python objects, whose reference counts change when they are read, and one large block.
    FAT = b"x" * 150_000_000
    WORDS = [str(n) for n in range(200_000)]
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        n = int(message.fields["n"])
        record(str(len(WORDS[n]) + FAT[n]))
""",
        redis_url=redis_server.url,
        workers=2,
        config="[pool]\nrecycle_growth_mb = 20\n",
    )
    before = pool.pids()
    assert all(psutil.Process(pid).memory_info().rss > 150 * MEGABYTE for pid in before.values())
    redis = redis_server.sync()
    until_s = time.monotonic() + 8  # a worker is looked at when it is 5 s old, each second
    count = 0
    while time.monotonic() < until_s:
        for n in range(count, count + 20):
            redis.xadd("events", {"n": n})
        count += 20
        eventually(lambda count=count: sum(seen(pool).values()) == count, interval_s=0.05)
    assert pool.pids() == before and not pool.events("recycling worker")
    own = [psutil.Process(pid).memory_full_info().uss / MEGABYTE for pid in before.values()]
    bound.check("a worker's own memory under a parent of more than 150 MB", own, 30, "MB")
    assert count > 100
