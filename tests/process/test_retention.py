"""A pool that keeps its streams short, and how a group that prevents it is shown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from redis.exceptions import ResponseError

from supervisor import Message, handler
from supervisor.fastapi import lifespan
from tests.support.pool import Pool
from tests.support.recording import HOLDING, SIMPLE, seen
from tests.support.waiting import eventually, eventually_async

StartPool = Callable[..., Pool]
CONFIG = '[pool]\ndrain_s = 0.5\n[stream.events]\nmax_age = "90m"\nmax_length = 5\n'


@pytest.mark.long
def test_the_keeper_trims_what_is_settled_and_tells_who_hinders_it(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(HOLDING, redis_url=redis_server.url, workers=2, config=CONFIG)
    redis = redis_server.sync()
    (pool.folder / "go").touch()
    for n in range(300):
        redis.xadd("events", {"n": n})
    eventually(lambda: redis.xlen("events") == 5 and seen(pool)["done"] >= 300, what="five are kept")

    # What is in hand stays, and what comes after it.
    (pool.folder / "go").unlink()
    held = [redis.xadd("events", {"n": f"held{n}"}) for n in range(3)]
    eventually(lambda: all(seen(pool)[f"held{n}"] for n in range(3)))
    (pool.folder / "go").touch()
    for n in range(20):
        redis.xadd("events", {"n": f"after{n}"})
    eventually(lambda: redis.xlen("events") == 23 and redis.xrange("events", count=1)[0][0] == held[0])
    assert kept(pool) == {"max_age_s": 5400, "max_length": 5, "held_by": "workers"}

    # The same holds for an abandoned group, whoever created it.
    redis.xgroup_create("events", "left", held[0])
    redis.xack("events", "workers", *held)
    eventually(lambda: redis.xlen("events") == 22)
    assert kept(pool)["held_by"] == "left"
    shown = pool.command("streams")
    assert "1 h 30 m, 5 entries" in shown.stdout
    assert "events: nothing is removed until group left settles its oldest entry" in shown.stderr
    told = [one for one in json.loads(pool.command("doctor", "--json").stdout) if "max_age" in one["text"]]
    assert [one["level"] for one in told] == ["warn"] and "XGROUP DESTROY events left" in told[0]["remedy"]
    redis.xgroup_destroy("events", "left")
    eventually(lambda: redis.xlen("events") == 5)
    assert kept(pool)["held_by"] is None


def kept(pool: Pool) -> dict[str, Any]:
    (stream,) = json.loads(pool.command("streams", "--json").stdout)
    found: dict[str, Any] = stream["retention"]
    return found


@pytest.mark.long
def test_a_full_server_gets_room_again(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=1, config="[consumer]\nmax_length = 5\n")
    redis = redis_server.sync()
    redis.xgroup_create("events", "left", "0")
    for n in range(3000):
        redis.xadd("events", {"n": n, "text": "x" * 1000})
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0 and seen(pool).total() == 3000)
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] - 1_000_000)
    with pytest.raises(ResponseError, match=r"OOM|used memory"):
        redis.xadd("events", {"n": "refused"})
    redis.xgroup_destroy("events", "left")
    eventually(lambda: redis.xlen("events") == 5)
    redis.xadd("events", {"n": "taken"})
    eventually(lambda: seen(pool)["taken"] == 1)


@pytest.mark.long
async def test_an_app_that_works_by_itself_trims_too(tmp_path: Path, redis: Any, redis_url: str) -> None:
    @handler("events", group="g")
    async def handle(message: Message) -> None: ...

    (tmp_path / "config.toml").write_text("[consumer]\nmax_length = 3\n")
    async with lifespan(handle, consumers=1, config=tmp_path / "config.toml", redis_url=redis_url)(FastAPI()):
        for n in range(10):
            await redis.xadd("events", {"n": n})

        async def is_short() -> bool:
            return bool(await redis.xlen("events") == 3)

        await eventually_async(is_short)
