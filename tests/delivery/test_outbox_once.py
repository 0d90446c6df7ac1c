"""Emit, `once`, outbox, later, schedules and a rate of two pools while any of their processes and Redis are killed."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from sqlalchemy import create_engine, text

from supervisor.contrib.sqlalchemy import create_tables
from supervisor.keys import LATER_STREAMS_KEY, later_key
from tests.delivery.kills import KEEPER, REDIS, RELAY, WORKER, Kills
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

    @handler("orders", group="limited", rate="100/s")
    async def limited(fields: dict[str, str]) -> Emit:
        return Emit("limited", fields)
"""
CONFIG = """
    pool.name = "NAME"
    retry.max_deliveries = 100
    retry.retry_base_s = 0.05
    consumer.max_crashes = 100
    outbox.url = "sqlite+aiosqlite:///FOLDER/shop.db"
    [schedule."ticking"]
    stream = "ticks"
    every = "1s"
    fields = { at = "{tick}" }
    missed = "all"
"""
BATCH = 20
#: Messages for later are due within this time.
SPREAD_S = 2.0
#: So many are added before each kill.
LATER = 200


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
        self.kills = Kills(self.random, self.pools, self.server)

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

    def publish_later(self, first: int, count: int) -> None:
        """Add messages that are due soon, as another program does."""
        seconds, micros = self.redis.time()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        due = {
            json.dumps({"id": str(n), "fields": {"n": n}}): now_ms + self.random.random() * SPREAD_S * 1000
            for n in range(first, first + count)
        }
        self.redis.zadd(later_key("due"), due)

    def numbers(self, stream: str) -> list[int]:
        return [int(fields[b"n"]) for _, fields in self.redis.xrange(stream)]

    def is_settled(self) -> bool:
        groups: list[dict[str, Any]] = self.redis.xinfo_groups("orders")
        with self.engine.connect() as connection:
            left = connection.scalar(text("SELECT count(*) FROM supervisor_outbox"))
        return (
            not left
            and not self.redis.exists(later_key("due"))
            and not any(group["pending"] or group["lag"] for group in groups)
        )

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


def ticks(redis: redis_py.Redis) -> list[datetime]:
    return [datetime.fromisoformat(fields[b"at"].decode()) for _, fields in redis.xrange("ticks")]


@pytest.mark.long
def test_effects_and_events_are_there_once(make_shop: Callable[[int], Shop], seed: int, load_s: float) -> None:
    shop = make_shop(seed)
    for pool in shop.pools:
        pool.start()
    shop.redis.hset(LATER_STREAMS_KEY, "due", 0)
    kills = shop.kills.plan((WORKER, WORKER, KEEPER, RELAY, REDIS), round(4 * load_s), 3)
    for number, what in enumerate(kills):
        shop.publish()
        shop.publish_later(number * LATER, LATER)
        time.sleep(shop.random.random() * 0.2)  # the load
        shop.kills.kill(what)
    eventually(shop.is_settled, 60)
    once = Counter(range(shop.sent))
    with shop.engine.connect() as connection:
        assert Counter(connection.scalars(text("SELECT n FROM effects"))) == once
    for stream in ("added", "emitted", "limited"):
        assert Counter(shop.numbers(stream)) == once, stream
    assert Counter(shop.numbers("due")) == Counter(range(len(kills) * LATER))
    came = ticks(shop.redis)
    assert came == [came[0] + timedelta(seconds=number) for number in range(len(came))], "each tick once, in order"
    assert set(shop.kills.done) == {WORKER, KEEPER, RELAY, REDIS}
