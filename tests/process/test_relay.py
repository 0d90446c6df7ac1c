"""The relay as a service of the pool, and `once` in its workers, while both are killed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, func, select, text
from sqlalchemy.orm import Session

from supervisor.contrib.sqlalchemy import add, create_tables
from supervisor.errors import EXIT_OK
from supervisor.outbox.tables import outbox
from tests.support.pool import Pool
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
HANDLERS = """
    import time
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session
    from supervisor import Message, handler
    from supervisor.contrib.sqlalchemy import add, once

    engine = create_engine("sqlite:///FOLDER/shop.db")

    @handler("orders", group="stock", timeout_s=10, retry_base_s=0.05, concurrency=4)
    def reserve(fields: dict[str, str], message: Message) -> None:
        with Session(engine) as session, session.begin():
            if not once(session, message):
                return
            session.execute(text("INSERT INTO reserved VALUES (:n)"), {"n": int(fields["n"])})
            time.sleep(float(fields.get("work_s", 0)))
            add(session, "reserved", {"n": int(fields["n"])})
"""
MESSAGES = 200


def relay(pool: Pool) -> dict[str, Any]:
    (found,) = [one for one in pool.status()["services"] if one["name"] == "relay"]
    return dict(found)


def kill(pid: int | None) -> None:
    if pid:
        os.kill(pid, signal.SIGKILL)


def test_effects_and_events_are_there_once_whoever_is_killed(
    start_pool: StartPool, redis_server: Any, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    engine = create_engine(url)
    create_tables(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE reserved (n INTEGER)"))
    handlers = HANDLERS.replace("FOLDER", str(tmp_path))
    config = f'[outbox]\nurl = "sqlite+aiosqlite:///{tmp_path}/shop.db"\n'
    pool = start_pool(handlers, redis_url=redis_server.url, workers=2, config=config)
    redis = redis_server.sync()
    for n in range(MESSAGES):
        redis.xadd("orders", {"n": n})

    def published() -> int:
        return int(redis.xlen("reserved"))

    for share in (1, 2, 3):
        eventually(lambda: published() >= share * MESSAGES // 4)  # noqa: B023
        kill(pool.pids()[share % 2])
        kill(relay(pool)["pid"])
    eventually(lambda: redis.xpending("orders", "stock")["pending"] == 0 and published() >= MESSAGES, 40)
    with Session(engine) as session, session.begin():
        add(session, "reserved", {"n": MESSAGES})
    eventually(lambda: published() > MESSAGES)
    found = sorted(int(fields[b"n"]) for _, fields in redis.xrange("reserved"))
    assert found == list(range(MESSAGES + 1))
    with engine.connect() as connection:
        effects = sorted(connection.scalars(text("SELECT n FROM reserved")))
        assert effects == list(range(MESSAGES))
        eventually(lambda: connection.scalar(select(func.count()).select_from(outbox)) == 0)
    eventually(lambda: pool.status()["outbox"]["state"] == "relaying")
    assert "outbox    relaying" in pool.command("status").stdout
    assert relay(pool)["restarts"] >= 1
    redis.xadd("orders", {"n": MESSAGES + 1, "work_s": 0.5})
    eventually(lambda: redis.xpending("orders", "stock")["pending"])
    assert pool.stop() == EXIT_OK
    assert redis.xrevrange("reserved", count=1)[0][1] == {b"n": str(MESSAGES + 1).encode()}, "it was added at the end"
