"""The check before a pool starts: it asks for everything that workers do, and takes no message."""

from typing import Any

from supervisor import Message, handler
from supervisor.handling.loader import specs_of
from supervisor.keeper.preflight import check
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
