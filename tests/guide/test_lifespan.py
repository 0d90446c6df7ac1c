"""Step five of the guide: consumers that start and stop with a FastAPI app."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI

from supervisor import Message, handler
from supervisor.errors import UsageError
from supervisor.fastapi import lifespan
from tests.support.waiting import eventually_async


async def test_consumers_start_and_stop_with_the_app(redis: Any, redis_url: str) -> None:
    seen: dict[str, list[str]] = {"mail": [], "count": []}

    @handler("events", group="mail")
    async def mail(message: Message) -> None:
        seen["mail"].append(message.id)

    @handler("events", group="count")
    def count(message: dict[str, str]) -> None:
        seen["count"].append(message["n"])

    app = FastAPI(lifespan=lifespan(mail, count, consumers=3, redis_url=redis_url))
    for n in range(30):
        await redis.xadd("events", {"n": n})
    async with app.router.lifespan_context(app):
        await eventually_async(lambda: len(seen["mail"]) == 30 and len(seen["count"]) == 30)
        assert len(await redis.xinfo_consumers("events", "mail")) >= 1
    assert len(set(seen["mail"])) == 30
    for group in ("mail", "count"):
        assert (await redis.xpending("events", group))["pending"] == 0
    named = [c for c in await redis.client_list() if "supervisor-" in c["name"]]
    assert named == []


async def test_without_a_redis_url_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REDIS_URL", raising=False)

    @handler("events", group="g")
    async def handle(message: Message) -> None: ...

    app = FastAPI(lifespan=lifespan(handle))
    with pytest.raises(UsageError, match="redis_url"):
        async with app.router.lifespan_context(app):
            pytest.fail("it must not start")
