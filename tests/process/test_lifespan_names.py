"""Several processes of one app: each has its own name, and takes over what a dead one had in hand."""

import asyncio
import collections
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from supervisor import Message, context, handler
from supervisor.errors import UsageError
from supervisor.fastapi import lifespan
from supervisor.keys import host_key
from supervisor.settings.model import Settings
from tests.support.pool import clean_environment
from tests.support.servers import AnyServer
from tests.support.waiting import eventually_async

HOST = Settings().pool.host


class App:
    """A handler that waits for a file, and a record of which worker ran what."""

    def __init__(self, redis_url: str) -> None:
        self.ran: collections.Counter[str] = collections.Counter()
        self.workers: dict[str, str] = {}
        self.go = asyncio.Event()
        self._url = redis_url

    def process(self, consumers: int = 1) -> AbstractAsyncContextManager[None]:
        """One process of the app, or a stand-in for one: they share nothing but Redis."""

        @handler("events", group="g")
        async def handle(message: Message) -> None:
            self.ran[message.fields["n"]] += 1
            self.workers[message.fields["n"]] = context().worker
            await self.go.wait()

        return lifespan(handle, consumers=consumers, redis_url=self._url)(FastAPI())


async def publish(redis: Any, *names: str) -> None:
    for name in names:
        await redis.xadd("events", {"n": name})


async def names(redis: Any) -> set[str]:
    return {row["name"].decode() for row in await redis.xinfo_consumers("events", "g")}


def has(redis: Any, *wanted: str) -> Callable[[], Any]:
    async def found() -> bool:
        return await names(redis) >= {f"{HOST}:{name}" for name in wanted}

    return found


def has_only(redis: Any, *wanted: str) -> Callable[[], Any]:
    async def found() -> bool:
        return await names(redis) == {f"{HOST}:{name}" for name in wanted}

    return found


def settled(redis: Any) -> Callable[[], Any]:
    async def found() -> bool:
        (group,) = await redis.xinfo_groups("events")
        return bool(group["pending"] == 0 and group["lag"] == 0)

    return found


async def test_two_processes_run_each_message_once_and_a_name_is_free_again(redis: Any, redis_url: str) -> None:
    app = App(redis_url)
    first, second, third = app.process(consumers=2), app.process(), app.process()
    await first.__aenter__()
    await publish(redis, *"abcde")
    await eventually_async(lambda: len(app.ran) == 5)
    async with second:
        await eventually_async(has(redis, "fastapi-0:0", "fastapi-0:1", "fastapi-1:0"))
        await publish(redis, *(str(n) for n in range(100)))
        await eventually_async(lambda: len(app.ran) == 105)
        app.go.set()
        await eventually_async(settled(redis))
        assert set(app.ran.values()) == {1}
        assert {name for name in app.workers.values() if "fastapi-1" in name} == {f"{HOST}:fastapi-1:0"}
        assert len(set(app.workers.values())) == 3, "each consumer is told its own name"
        assert await redis.exists(host_key(f"{HOST}:fastapi-0"), host_key(f"{HOST}:fastapi-1")) == 2

        await first.__aexit__(None, None, None)
        assert await redis.exists(host_key(f"{HOST}:fastapi-0")) == 0
        async with third:
            await eventually_async(lambda: redis.exists(host_key(f"{HOST}:fastapi-0")))
            assert await redis.exists(host_key(f"{HOST}:fastapi-2")) == 0
    assert await redis.keys(host_key("*")) == []


@pytest.mark.long
async def test_one_that_has_lost_its_name_goes_on_under_another(redis: Any, redis_url: str) -> None:
    app = App(redis_url)
    async with app.process():
        await publish(redis, "a")
        await eventually_async(lambda: app.ran == {"a": 1})
        await publish(redis, "b")
        await eventually_async(lambda: app.ran == {"a": 1, "b": 1})
        await redis.set(host_key(f"{HOST}:fastapi-0"), "another process, which came while this one was frozen")
        app.go.set()
        await eventually_async(has(redis, "fastapi-1:0"))
        await eventually_async(settled(redis))
        await publish(redis, "c")
        await eventually_async(lambda: app.workers.get("c") == f"{HOST}:fastapi-1:0")
    assert app.ran == {"a": 1, "b": 1, "c": 1}
    assert await redis.keys(host_key("*")) == [host_key(f"{HOST}:fastapi-0").encode()]


async def test_an_app_starts_without_redis_and_works_as_soon_as_it_is_there(redis_server: AnyServer) -> None:
    app = App(redis_server.url)
    app.go.set()
    redis_server.kill()
    async with app.process():
        redis_server.restart()
        async with redis_server.client() as redis:
            await publish(redis, "a")
            await eventually_async(settled(redis), 20)
    assert app.ran == {"a": 1}


VICTIM = """
import asyncio, pathlib
from fastapi import FastAPI
from supervisor import handler
from fastapi import FastAPI

from supervisor.fastapi import lifespan

@handler("events", group="g")
async def handle(message: dict[str, str]) -> None:
    pathlib.Path("began").touch()
    await asyncio.Event().wait()

async def main() -> None:
    async with lifespan(handle)(FastAPI()):
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.long
async def test_what_a_killed_process_had_in_hand_is_taken_over(redis: Any, redis_url: str, tmp_path: Path) -> None:
    app = App(redis_url)
    app.go.set()
    environment = clean_environment() | {"REDIS_URL": redis_url}
    victim = subprocess.Popen([sys.executable, "-c", VICTIM], cwd=tmp_path, env=environment)
    try:
        await publish(redis, "a")
        await eventually_async((tmp_path / "began").exists, 30)
        async with app.process():
            await eventually_async(lambda: redis.exists(host_key(f"{HOST}:fastapi-1")))
            os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
            # Its lease expires in ten seconds, and the others check for that every few seconds.
            await eventually_async(lambda: app.ran == {"a": 1}, 60)
            await eventually_async(settled(redis))
            await eventually_async(has_only(redis, "fastapi-1:0"))
    finally:
        victim.kill()
        victim.wait()


@pytest.mark.parametrize("name", ["", "a b", "a:b", "{a}"])
def test_a_name_that_would_make_others_ambiguous_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        lifespan(name=name)
