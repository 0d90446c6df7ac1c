"""Turns and rates of two pools while workers, keepers, a whole pool and Redis are killed."""

import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from supervisor.keys import turn_key
from tests.delivery.kills import KEEPER, REDIS, WORKER, Kills
from tests.support.pool import Pool
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

STREAM, GROUP = "orders", "billing"
HANDLERS = """
import asyncio
import os
import threading
import time
from supervisor import Message, handler

FILE = os.open({file!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def watch() -> None:
    while True:
        began_ns = time.monotonic_ns()
        time.sleep(0.01)
        late_ns = time.monotonic_ns() - began_ns - 10_000_000
        if late_ns > 10_000_000:
            os.write(FILE, f"late - - {{os.getpid()}} {{late_ns}}\\n".encode())


WATCHES = []


def note(message: Message, what: str) -> None:
    line = f"{{what}} {{message.fields['customer']}} {{message.id}} {{os.getpid()}} {{time.monotonic_ns()}}\\n"
    os.write(FILE, line.encode())


@handler("orders", group="billing"{options})
async def bill(message: Message) -> None:
    if not WATCHES:
        WATCHES.append(threading.Thread(target=watch, daemon=True))
        WATCHES[0].start()
    note(message, "start")
    await asyncio.sleep(0.002)
    note(message, "end")
"""
#: Nothing becomes a dead letter, however often its workers are killed.
CONFIG = """
    pool.host = "{name}"
    retry.max_deliveries = 1000
    consumer.max_crashes = 1000
"""
SHORT_S = 3.0


class Line(NamedTuple):
    what: str
    key: str
    id: str
    pid: int
    at_s: float


class Run:
    """Two pools that write what they do to one file."""

    def __init__(
        self, folder: Path, stack: ExitStack, seed: int, *, is_short: bool, workers: tuple[int, int], options: str
    ) -> None:
        """`workers` of each pool, in the short form and in the long one."""
        self.file = folder / "lines"
        self.is_short = is_short
        self.chance = random.Random(seed)
        self.server = stack.enter_context(RedisServer(appendonly=True))
        self.redis = stack.enter_context(self.server.sync())
        code = HANDLERS.format(file=str(self.file), options=options)
        self.pools = [
            stack.enter_context(
                Pool(
                    folder / name,
                    code,
                    redis_url=self.server.url,
                    workers=workers[not is_short],
                    config=CONFIG.format(name=name),
                )
            )
            for name in ("a", "b")
        ]
        self.kills = Kills(self.chance, self.pools, self.server)
        self.published: list[str] = []
        #: The longest time for which the machine let a worker wait.
        self.late_s = 0.0
        self._read = 0
        self._lines: list[Line] = []

    def publish(self, count: int, keys: int) -> None:
        pipe = self.redis.pipeline(transaction=False)
        for _ in range(count):
            pipe.xadd(STREAM, {"customer": f"c{self.chance.randrange(keys)}"})
        self.published += [entry.decode() for entry in pipe.execute()]

    def start(self) -> None:
        for pool in self.pools:
            pool.start()

    def lines(self) -> list[Line]:
        """All that was written so far."""
        with self.file.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        for line in text.decode().splitlines():
            what, key, entry, pid, at_ns = line.split()
            if what == "late":
                self.late_s = max(self.late_s, int(at_ns) / 1e9)
                continue
            self._lines.append(Line(what, key, entry, int(pid), int(at_ns) / 1e9))
        return self._lines

    def ended(self) -> int:
        """How many messages were handled to the end."""
        return len({line.id for line in self.lines() if line.what == "end"}) if self.file.exists() else 0

    def finish(self) -> None:
        """Wait until all is settled, and nothing is left of any turn."""
        eventually(lambda: self.ended() == len(self.published), 300, 0.2)

        def settled() -> bool:
            rows = list(self.redis.scan_iter(turn_key(STREAM, GROUP, "*")))
            return not self.redis.xpending(STREAM, GROUP)["pending"] and not rows

        eventually(settled, 30, 0.1)


def check_order(run: Run) -> None:
    """Each key ran in stream order at each first start, and never two messages of a key at once."""
    running: dict[str, Line] = {}
    first: dict[str, list[str]] = {}
    for line in run.lines():
        other = running.get(line.key)
        if line.what == "end":
            if other and (other.id, other.pid) == (line.id, line.pid):
                del running[line.key]
            continue
        assert other is None or other.pid in run.kills.workers, f"{other} still ran at {line}"
        running[line.key] = line
        if line.id not in first.setdefault(line.key, []):
            first[line.key].append(line.id)
    order = {entry: number for number, entry in enumerate(run.published)}
    for key, ids in first.items():
        places = [order[entry] for entry in ids]
        assert places == sorted(places), key


def most_in(starts: list[float], window_s: float) -> int:
    """The greatest number of starts within any such time."""
    return max(bisect_left(starts, at_s + window_s) - number for number, at_s in enumerate(starts))


@pytest.fixture
def make_run(tmp_path: Path, seed: int, load_s: float) -> Iterator[Callable[..., Run]]:
    with ExitStack() as stack:
        yield lambda **options: Run(tmp_path, stack, seed, is_short=load_s < SHORT_S, **options)


def test_each_key_runs_in_order_whatever_is_killed(make_run: Callable[..., Run]) -> None:
    run = make_run(workers=(2, 4), options=', key="customer"')
    count, keys, kills = (600, 20, 4) if run.is_short else (20_000, 200, 30)
    run.publish(count, keys)
    run.start()
    for number, what in enumerate(run.kills.plan((WORKER, KEEPER, REDIS), kills, 2 if run.is_short else 4), 1):
        eventually(lambda: run.ended() >= count * number / (kills + 3), 300, 0.02)  # noqa: B023
        time.sleep(run.chance.random() * 0.02)  # at any moment of what the workers do
        run.kills.kill(what)
    run.kills.kill_pool(run.pools[1])
    run.finish()
    check_order(run)
    assert set(run.kills.done) == {WORKER, KEEPER, REDIS, "pool"}


RATE, BURST = 50, 5
#: How much later than it may start a message is seen to start, besides the time for which its worker had to wait.
LATE_S = 0.2


def starts_max(run: Run) -> float:
    """How many starts may be seen within a second: a worker that had to wait starts what was allowed meanwhile."""
    return RATE * (1 + LATE_S + run.late_s) + BURST


@pytest.mark.long
def test_a_rate_is_kept_by_two_pools_within_two_percent(make_run: Callable[..., Run]) -> None:
    run = make_run(workers=(2, 2), options=f', rate="{RATE}/s"')
    run.publish(RATE * 20, 100_000)
    run.start()
    eventually(lambda: run.ended() > RATE, 60)
    began_s = time.monotonic()
    eventually(lambda: time.monotonic() - began_s > 10.5, 60)
    starts = sorted(line.at_s for line in run.lines() if line.what == "start" and line.at_s >= began_s)
    within = bisect_left(starts, starts[0] + 10)
    slack = RATE * (LATE_S + run.late_s)
    assert 0.98 * RATE * 10 - slack <= within <= 1.02 * RATE * 10 + BURST + slack
    assert most_in(starts, 1.0) <= starts_max(run)


def test_a_rate_is_kept_whatever_is_killed(make_run: Callable[..., Run]) -> None:
    """What became due while Redis was away, or a pool was dead, does not start at once."""
    run = make_run(workers=(1, 2), options=f', rate="{RATE}/s"')
    count, kills = (RATE * 2, 3) if run.is_short else (RATE * 15, 8)
    run.publish(count, 100_000)
    run.start()
    for number, what in enumerate(run.kills.plan((WORKER, KEEPER, REDIS), kills, 2), 1):
        eventually(lambda: run.ended() >= count * number / (kills + 3), 60, 0.02)  # noqa: B023
        run.kills.kill(what)
    if not run.is_short:
        run.kills.kill_pool(run.pools[1])
    run.finish()
    starts = sorted(line.at_s for line in run.lines() if line.what == "start")
    # After a kill, what the worker had in hand starts again, one message before its turn.
    assert most_in(starts, 1.0) <= starts_max(run) + sum(run.kills.done.values())
    assert {WORKER, KEEPER, REDIS} <= set(run.kills.done)
