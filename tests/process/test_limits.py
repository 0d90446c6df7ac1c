"""Order by key on two pools while workers and a whole pool are killed."""

import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from supervisor.keys import turn_key
from tests.support.pool import Pool
from tests.support.servers import AnyServer
from tests.support.waiting import eventually

STREAM, GROUP = "orders", "billing"
HANDLERS = """
import asyncio
import os
from supervisor import Message, handler

FILE = os.open({file!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(message: Message, what: str) -> None:
    os.write(FILE, f"{{what}} {{message.fields['customer']}} {{message.id}} {{os.getpid()}}\\n".encode())


@handler("orders", group="billing", key="customer"{options})
async def bill(message: Message) -> None:
    note(message, "start")
    await asyncio.sleep(0.002)
    note(message, "end")
"""


class Line(NamedTuple):
    what: str
    key: str
    id: str
    pid: int


class Run:
    """Two pools that write what they do to one file."""

    def __init__(self, folder: Path, url: str, stack: ExitStack, *, workers: int, options: str = "") -> None:
        self.file = folder / "lines"
        self.killed: set[int] = set()
        code = HANDLERS.format(file=str(self.file), options=options)
        self.pools = [
            stack.enter_context(
                Pool(folder / name, code, redis_url=url, workers=workers, config=f'[pool]\nhost = "{name}"\n')
            )
            for name in ("a", "b")
        ]

    def start(self) -> None:
        for pool in self.pools:
            pool.start()

    def lines(self) -> list[Line]:
        text = self.file.read_text() if self.file.exists() else ""
        return [Line(a, b, c, int(d)) for a, b, c, d in (line.split() for line in text.splitlines())]

    def ended(self) -> set[str]:
        return {line.id for line in self.lines() if line.what == "end"}

    def kill_worker(self, chance: random.Random) -> None:
        pool = chance.choice(self.pools)
        slot = chance.choice(list(pool.pids()))
        self.killed.add(pool.kill_worker(slot))

    def check(self, published: list[str]) -> None:
        """Assert that nothing is lost, each key ran in stream order, and never two messages of a key at once."""
        lines = self.lines()
        assert self.ended() == set(published)
        running: dict[str, Line] = {}
        first: dict[str, list[str]] = {}
        for line in lines:
            if line.what == "end":
                if running.get(line.key) == line._replace(what="start"):
                    del running[line.key]
                continue
            other = running.get(line.key)
            assert other is None or other.pid in self.killed, f"{other} still ran at {line}"
            running[line.key] = line
            if line.id not in first.setdefault(line.key, []):
                first[line.key].append(line.id)
        order = {entry: number for number, entry in enumerate(published)}
        for key, ids in first.items():
            assert [order[entry] for entry in ids] == sorted(order[entry] for entry in ids), key


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def publish(redis: Any, count: int, keys: int, chance: random.Random) -> list[str]:
    pipe = redis.pipeline(transaction=False)
    for _ in range(count):
        pipe.xadd(STREAM, {"customer": f"c{chance.randrange(keys)}"})
    return [entry.decode() for entry in pipe.execute()]


def rows(redis: Any) -> list[bytes]:
    return list(redis.scan_iter(turn_key(STREAM, GROUP, "*")))


@pytest.mark.parametrize(
    ("count", "keys", "workers", "kills"),
    [(600, 20, 2, 4), pytest.param(20_000, 200, 4, 30, marks=pytest.mark.long)],
)
def test_each_key_runs_in_order_while_workers_and_a_pool_are_killed(
    redis_server: AnyServer, tmp_path: Path, stack: ExitStack, count: int, keys: int, workers: int, kills: int
) -> None:
    chance = random.Random(count)
    run = Run(tmp_path, redis_server.url, stack, workers=workers)
    with redis_server.sync() as redis:
        published = publish(redis, count, keys, chance)
        run.start()
        for kill in range(1, kills + 1):
            eventually(lambda: len(run.ended()) >= count * kill / (kills + 3), 300)  # noqa: B023
            run.kill_worker(chance)
        pool = run.pools[1]
        run.killed |= set(pool.pids().values())
        pool.send(signal.SIGKILL)
        pool.wait()
        pool.start()
        eventually(lambda: len(run.ended()) == count, 300)
        eventually(lambda: not redis.xpending(STREAM, GROUP)["pending"] and not rows(redis), 30)
    run.check(published)


@pytest.mark.long
def test_a_rate_is_kept_by_two_pools_within_two_percent(
    redis_server: AnyServer, tmp_path: Path, stack: ExitStack
) -> None:
    run = Run(tmp_path, redis_server.url, stack, workers=2, options=', rate="200/s"')
    with redis_server.sync() as redis:
        publish(redis, 3000, 100_000, random.Random(1))
        run.start()
        eventually(lambda: len(run.ended()) > 200, 60)
        before, began_s = len(run.ended()), time.monotonic()
        eventually(lambda: time.monotonic() - began_s > 10, 60, 0.001)
        rate = (len(run.ended()) - before) / (time.monotonic() - began_s)
    assert 196 <= rate <= 204
