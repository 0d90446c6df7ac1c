"""Step five of the guide: consumers that start and stop with a FastAPI app."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from supervisor import Message, handler
from supervisor.errors import ConfigError, HandlerError, UsageError
from supervisor.fastapi import PublisherDep, RedisDep, lifespan
from supervisor.keys import dead_key
from tests.support.pool import clean_environment
from tests.support.servers import free_port
from tests.support.waiting import eventually, eventually_async


async def test_consumers_start_and_stop_with_the_app(redis: Any, redis_url: str) -> None:
    seen: dict[str, list[str]] = {"mail": [], "count": []}

    @handler("events", group="mail")
    async def mail(message: Message) -> None:
        seen["mail"].append(message.id)

    @handler("events", group="count")
    def count(message: dict[str, str]) -> None:
        seen["count"].append(message["n"])

    async def all_read() -> bool:
        return len(await redis.xinfo_consumers("events", "mail")) == 3

    async def connected() -> list[str]:
        return [client["name"] for client in await redis.client_list() if "supervisor-" in client["name"]]

    async def disconnected() -> bool:
        return not await connected()

    app = FastAPI(lifespan=lifespan(mail, count, consumers=3, redis_url=redis_url))
    for n in range(30):
        await redis.xadd("events", {"n": n})
    async with app.router.lifespan_context(app):
        await eventually_async(lambda: len(seen["mail"]) == 30 and len(seen["count"]) == 30)
        await eventually_async(all_read)
        assert len(await connected()) >= 3
    assert len(set(seen["mail"])) == 30
    for group in ("mail", "count"):
        assert (await redis.xpending("events", group))["pending"] == 0
    await eventually_async(disconnected)


async def test_a_consumer_that_failed_is_started_again(redis: Any, redis_url: str) -> None:
    """What it had in hand is run alone then, and given up when it ends the consumer again and again."""
    seen: list[str] = []

    @handler("events", group="mail")
    async def mail(message: dict[str, str]) -> None:
        seen.append(message["n"])
        if message["n"] == "bad":
            for task in asyncio.all_tasks():
                if task.get_name().startswith("consumer "):
                    task.cancel()
            await asyncio.Event().wait()

    async def dead() -> bool:
        return bool(await redis.xlen(dead_key("events", "mail")))

    app = FastAPI(lifespan=lifespan(mail, redis_url=redis_url))
    await redis.xadd("events", {"n": "bad"})
    async with app.router.lifespan_context(app):
        await eventually_async(dead)
        await redis.xadd("events", {"n": "good"})
        await eventually_async(lambda: "good" in seen)
    [(_, letter)] = await redis.xrange(dead_key("events", "mail"))
    assert letter[b"reason"] == b"crashed the worker" and seen.count("bad") == 3
    assert (await redis.xpending("events", "mail"))["pending"] == 0


async def test_a_router_gets_publisher_and_redis_in_an_app_of_ones_own(redis: Any, redis_url: str) -> None:
    @handler("orders", group="mail")
    async def mail(message: Message) -> None: ...

    router = APIRouter()

    @router.post("/orders")
    async def create(publisher: PublisherDep, redis: RedisDep) -> list[Any]:
        return [(await publisher.publish("orders", {"item": "tea"})).id, await redis.xlen("orders")]

    app = FastAPI(lifespan=lifespan(mail, redis_url=redis_url))
    app.include_router(router)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        with pytest.raises(UsageError, match=r"start the app with lifespan=supervisor\.fastapi\.lifespan"):
            await http.post("/orders")
        async with app.router.lifespan_context(app):
            entry, length = (await http.post("/orders")).json()
    assert length == 1
    assert [found.decode() for found, _ in await redis.xrange("orders")] == [entry]


APP = """
import asyncio
from pathlib import Path
from fastapi import FastAPI
from supervisor import handler
from supervisor.fastapi import lifespan

@handler("events", group="mail")
async def mail(message: dict[str, str]) -> None:
    Path("began").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    Path("done").write_text(message["n"])

app = FastAPI(lifespan=lifespan(mail, consumers=2))

@app.get("/hello")
async def hello() -> str:
    return "world"
"""


def test_an_app_under_uvicorn_finishes_what_is_in_hand_before_it_leaves(tmp_path: Path, redis_server: Any) -> None:
    (tmp_path / "app.py").write_text(APP)
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", address.rpartition(":")[2]]
    env = clean_environment() | {"REDIS_URL": redis_server.url}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        eventually(
            lambda: httpx.get(f"http://{address}/hello", trust_env=False, verify=False, timeout=30).json() == "world",
            30,
        )
        with redis_server.sync() as redis:
            redis.xadd("events", {"n": 1})
            eventually((tmp_path / "began").exists)
            process.terminate()
            eventually(lambda: "Waiting for application shutdown" in (tmp_path / "log").read_text())
            assert process.poll() is None and not (tmp_path / "done").exists()
            (tmp_path / "go").touch()
            process.wait(30)
            assert (tmp_path / "done").read_text() == "1"
            assert redis.xpending("events", "mail")["pending"] == 0
        log_text = (tmp_path / "log").read_text()
        assert "Application shutdown complete" in log_text and "Traceback" not in log_text, log_text
    finally:
        process.kill()
        process.wait()


async def test_without_a_redis_url_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)

    @handler("events", group="g")
    async def handle(message: Message) -> None: ...

    app = FastAPI(lifespan=lifespan(handle))
    with pytest.raises(UsageError, match="redis_url"):
        async with app.router.lifespan_context(app):
            pytest.fail("it must not start")


async def test_a_function_that_is_not_a_handler_is_refused(redis_url: str) -> None:
    async def forgotten(message: Message) -> None: ...

    app = FastAPI(lifespan=lifespan(forgotten, redis_url=redis_url))
    with pytest.raises(HandlerError, match=r"test_lifespan.py:\d+: .*forgotten is not a handler"):
        async with app.router.lifespan_context(app):
            pass


async def test_the_config_of_another_program_stops_no_app_that_gives_everything(
    redis: Any, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    @handler("events", group="mail")
    async def mail(message: Message) -> None:
        seen.append(message.id)

    (tmp_path / "config.toml").write_text('title = "another program"\n[redis]\nhost = "elsewhere"\n')
    monkeypatch.chdir(tmp_path)
    await redis.xadd("events", {"n": 1})
    app = FastAPI(lifespan=lifespan(mail, redis_url=redis_url))
    async with app.router.lifespan_context(app):
        await eventually_async(lambda: seen)
    app = FastAPI(lifespan=lifespan(redis_url=redis_url))
    with pytest.raises(ConfigError, match="title"):
        async with app.router.lifespan_context(app):
            pass
