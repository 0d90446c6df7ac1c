"""Case 28: two pools with two keepers on one Redis, idle for longer than any lease, and a third that dies."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.keeper.lease import LEASE_MS
from tests.delivery.case import GROUP, STREAM, Case
from tests.delivery.checker import Effect
from tests.delivery.recorder import handlers, recording
from tests.support.pool import Pool, kill_all
from tests.support.waiting import eventually

MakeCase = Callable[..., Case]
WORKERS = 2
HELD = 24
HOUR_MS = 3_600_000
#: Until a file `go` is there, wherever it is looked for.
HOLDING = """
@handler("events", group="workers", timeout_s=600)
async def handle(message: Message) -> None:
    with run(message):
        while message.fields.get("held") and not os.path.exists("go"):
            await asyncio.sleep(0.02)
"""


@pytest.fixture
def more_pools(tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    """More pools on the case's Redis, by name: `more_pools(case, "b")`."""
    made: list[Pool] = []

    def start(case: Case, host: str) -> Pool:
        config = f'[pool]\nhost = "{host}"\n'
        pool = Pool(tmp_path / host, handlers(HOLDING), redis_url=case.url, workers=WORKERS, config=config)
        made.append(pool)
        return pool.start()

    yield start
    for pool in made:
        pool.close()


def holders(case: Case) -> dict[str, str]:
    """Message id -> the consumer that has it pending."""
    rows: Any = case.redis.xpending_range(STREAM, GROUP, "-", "+", 1000)
    return {row["message_id"].decode(): row["consumer"].decode() for row in rows}


def consumers(case: Case) -> dict[str, int]:
    """Consumer -> for how long it got nothing, in ms, which Redis before 7.2 calls idle."""
    rows: Any = case.redis.xinfo_consumers(STREAM, GROUP)
    return {row["name"].decode(): row.get("inactive", row["idle"]) for row in rows}


def hold(case: Case, first: int) -> list[int]:
    """Publish messages whose handlers wait until they are released."""
    for n in range(first, first + HELD):
        case.load.attempts[n] = time.monotonic_ns()
        case.load.sent[n] = {}
        case.load.ids[n] = case.redis.xadd(STREAM, {"n": n, "work_ms": 0, "held": 1}).decode()
    return list(range(first, first + HELD))


def age(case: Case) -> dict[str, str]:
    """Make all that is pending look as if it was left alone an hour ago; who holds what."""
    live = holders(case)
    for entry, name in live.items():
        case.redis.xclaim(STREAM, GROUP, name, 0, [entry], idle=HOUR_MS, justid=True)
    rows: Any = case.redis.xpending_range(STREAM, GROUP, "-", "+", 1000)
    aged = [row["message_id"] for row in rows if row["time_since_delivered"] >= HOUR_MS]
    case.struck("messages of live workers look an hour old", len(aged) == len(live) == HELD)
    return live


def die(pool: Pool) -> int:
    """Kill the pool as a dead host would; return when, in ns."""
    kill_all(pool.processes())
    pool.wait()
    return time.monotonic_ns()


@pytest.mark.long
def test_28_two_keepers(make_case: MakeCase, more_pools: Callable[..., Pool], tmp_path: Path) -> None:
    case = make_case(body=HOLDING, workers=WORKERS, load_s=1.0, rate=50.0)
    case.start_pool()
    other = more_pools(case, "other")
    case.start_load()
    case.load.join()
    eventually(case.drained)
    # Messages that run for very long, and seem to have been left alone for an hour: their handlers run nevertheless.
    held = hold(case, 1_000)
    eventually(lambda: set(held) <= started(case, tmp_path))
    live = age(case)
    names = set(consumers(case))
    # A third pool, that dies whole with messages in hand.
    third = more_pools(case, "third")
    doomed = hold(case, 2_000)
    eventually(lambda: set(doomed) <= started(case, tmp_path))
    third_has = {entry for entry, name in holders(case).items() if name.startswith("third:")}
    died_ns = die(third)
    case.struck("a pool died with messages in hand", third_has, died_ns)

    idle_ms: dict[str, int] = {}

    def taken() -> bool:
        now = holders(case)
        idle_ms.update({name: max(ms, idle_ms.get(name, 0)) for name, ms in consumers(case).items()})
        return not third_has & {entry for entry, name in now.items() if name.startswith("third:")}

    eventually(taken, LEASE_MS / 1000 * 2 + 40, 0.05)
    case.check("a pool died until its messages have changed hands", (time.monotonic_ns() - died_ns) / 1e6, 25_000)
    eventually(lambda: not [name for name in consumers(case) if name.startswith("third:")], 40)
    # All this time nothing was taken from a living consumer, however idle it looked.
    assert (time.monotonic_ns() - case.faults[0][1]) / 1e6 > LEASE_MS
    now = holders(case)
    reaped = [entry for entry, name in live.items() if now.get(entry) != name]
    case.check("messages of live workers that were reaped", len(reaped), 0, "")
    assert names <= set(consumers(case)), "no live consumer was deleted"
    # Most of a lease at least: it was renewed for the last time up to a third of it before the pool died.
    case.struck("live workers looked idle for most of a lease", max(idle_ms[name] for name in names) > LEASE_MS / 2)
    claimed = sum(line["messages"] for pool in (case.pool, other) for line in pool.events("consumer reaped"))
    case.check("messages that were claimed twice", claimed - len(third_has), 0, "")
    for folder in (case.pool.folder, other.folder, third.folder):
        (folder / "go").touch()
    eventually(case.drained, 20)
    runs = [start.n for start in seen(case, tmp_path)]
    again = {n for n, entry in case.load.ids.items() if entry in third_has}
    for n in held + doomed:
        assert runs.count(n) == (2 if n in again else 1), f"{n} ran {runs.count(n)} times"
    assert other.stop() == 0
    finished = {end.n for pool in (case.pool, other) for end in recording(pool.folder).ends}
    assert finished >= set(held + doomed)


def seen(case: Case, folder: Path) -> list[Effect]:
    """Each start of a handler in any of the pools."""
    found = list(case.recording().starts)
    for name in ("other", "third"):
        found += recording(folder / name).starts
    return found


def started(case: Case, folder: Path) -> set[int]:
    """Which messages were started in any of the pools."""
    return {start.n for start in seen(case, folder)}
