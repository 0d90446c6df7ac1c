"""The check before a pool starts: it asks for everything that workers do, and takes no message."""

from typing import Any

import pytest

from supervisor import Message, handler
from supervisor.errors import AlreadyRunningError
from supervisor.handling.loader import specs_of
from supervisor.keeper.preflight import check
from supervisor.keys import POOLS_KEY, host_key
from supervisor.settings.model import Settings


@handler("events", group="workers")
async def ignore(message: Message) -> None: ...


async def test_it_takes_no_message(every_server: Any) -> None:
    async with every_server.client() as redis:
        for n in range(3):
            await redis.xadd("events", {"n": n})
        settings = Settings(redis={"url": every_server.url})  # type: ignore[arg-type]
        found = await check(settings, specs_of(settings, [ignore]), "a token")
        assert found["streams"] == ["events"]
        assert (await redis.xpending("events", "workers"))["pending"] == 0
        (group,) = await redis.xinfo_groups("events")
        assert group["last-delivered-id"] == b"0-0"


@pytest.mark.parametrize("has_group", [True, False])
async def test_a_pool_starts_on_a_full_server(every_server: Any, has_group: bool) -> None:
    """Only its handlers make room there. A group that can't be created is one that its workers can't read yet."""
    async with every_server.client() as redis:
        await redis.xadd("events", {"n": 1})
        if has_group:
            await redis.xgroup_create("events", "workers", "0")
        await redis.config_set("maxmemory", 1)
        settings = Settings(redis={"url": every_server.url}, pool={"host": "full"})  # type: ignore[arg-type]
        await check(settings, specs_of(settings, [ignore]), "a token")
        assert await redis.get(host_key("full")) == b"a token"
        assert await redis.hkeys(POOLS_KEY) == [b"full"]
        with pytest.raises(AlreadyRunningError):
            await check(settings, specs_of(settings, [ignore]), "another", where_runs=lambda _: "here")
