"""Emit, `once` and the outbox of two pools while workers, relays and Redis are killed: everything once."""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from sqlalchemy import create_engine, text

from supervisor.contrib.sqlalchemy import create_tables
from tests.support.pool import Pool
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

HANDLERS = """
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session
    from supervisor import Emit, Message, handler
    from supervisor.contrib.sqlalchemy import add, once

    engine = create_engine("sqlite:///FOLDER/shop.db", connect_args={"timeout": 20})

    @handler("orders", group="stock", concurrency=4)
    def reserve(fields: dict[str, str], message: Message) -> None:
        with Session(engine) as session, session.begin():
            if once(session, message):
                session.execute(text("INSERT INTO effects VALUES (:n)"), {"n": int(fields["n"])})
                add(session, "added", {"n": int(fields["n"])})

    @handler("orders", group="emits")
    async def emit(fields: dict[str, str]) -> Emit:
        return Emit("emitted", fields)
"""
CONFIG = """
    pool.name = "NAME"
    retry.max_deliveries = 100
    retry.retry_base_s = 0.05
    consumer.max_crashes = 100
    outbox.url = "sqlite+aiosqlite:///FOLDER/shop.db"
"""
BATCH = 20
REDIS_KILLS_MAX = 3


class Shop:
    """Two pools on one Redis and one database."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.engine = create_engine(f"sqlite:///{folder}/shop.db")
        create_tables(self.engine)
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE effects (n INTEGER)"))
        self.server = RedisServer(appendonly=True)
        self.redis = self.server.sync()
        handlers = HANDLERS.replace("FOLDER", str(folder))
        self.pools = [
            Pool(
                folder / name, handlers, redis_url=self.server.url, workers=2,
                config=CONFIG.replace("FOLDER", str(folder)).replace("NAME", name),
            )
            for name in ("first", "second")
        ]  # fmt: skip
        self.sent = 0
        self.kills: Counter[str] = Counter()

    def publish(self) -> None:
        """Publish some numbers; after a lost answer, look for what was stored."""
        try:
            with self.redis.pipeline(transaction=True) as pipe:
                for n in range(self.sent, self.sent + BATCH):
                    pipe.xadd("orders", {"n": n})
                pipe.execute()
            self.sent += BATCH
        except redis_py.RedisError:
            self.sent = eventually(lambda: len(self.numbers("orders")) + 1) - 1

    def numbers(self, stream: str) -> list[int]:
        return [int(fields[b"n"]) for _, fields in self.redis.xrange(stream)]

    def kill_one(self) -> None:
        """Kill a worker or a relay, or Redis, which is started again."""
        pool = self.random.choice(self.pools)
        what = self.random.choice(["worker", "worker", "relay", "relay", "redis"])
        if what == "redis" and self.kills[what] < REDIS_KILLS_MAX:
            self.server.kill()
            self.server.start()
        else:
            services = {one["name"]: one["pid"] for one in pool.status()["services"]}
            pid = services["relay"] if what == "relay" else pool.pids().get(self.random.randrange(2))
            with contextlib.suppress(ProcessLookupError, TypeError):  # it is being replaced
                os.kill(pid, signal.SIGKILL)  # type: ignore[arg-type]
        self.kills[what] += 1

    def is_settled(self) -> bool:
        groups: list[dict[str, Any]] = self.redis.xinfo_groups("orders")
        with self.engine.connect() as connection:
            left = connection.scalar(text("SELECT count(*) FROM supervisor_outbox"))
        return not left and not any(group["pending"] or group["lag"] for group in groups)

    def close(self) -> None:
        for pool in self.pools:
            pool.close()
        self.redis.close()
        self.server.close()
        self.engine.dispose()


@pytest.fixture
def make_shop(tmp_path: Path) -> Iterator[Callable[[int], Shop]]:
    made: list[Shop] = []

    def make(seed: int) -> Shop:
        made.append(Shop(tmp_path, seed))
        return made[-1]

    yield make
    for shop in made:
        shop.close()


@pytest.mark.long
def test_effects_and_events_are_there_once(make_shop: Callable[[int], Shop], seed: int, load_s: float) -> None:
    shop = make_shop(seed)
    for pool in shop.pools:
        pool.start()
    until_s = time.monotonic() + load_s
    while time.monotonic() < until_s:
        shop.publish()
        shop.kill_one()
        time.sleep(shop.random.random() * 0.2)  # the load
    eventually(shop.is_settled, 60)
    once = Counter(range(shop.sent))
    with shop.engine.connect() as connection:
        assert Counter(connection.scalars(text("SELECT n FROM effects"))) == once
    assert Counter(shop.numbers("added")) == once
    assert Counter(shop.numbers("emitted")) == once
    assert shop.kills["relay"] and shop.kills["worker"]
