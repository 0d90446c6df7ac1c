"""Entries that a producer's MAXLEN removes before a group has read them."""

from typing import Any

import pytest

from supervisor.broker import inspect
from supervisor.keys import trimmed_key
from tests.support.servers import AnyServer

STREAM, GROUP = "events", "g"


@pytest.fixture
def counting_server(every_server: AnyServer) -> AnyServer:
    """Each server whose XINFO counts the entries that a group has read."""
    if every_server.flavour.name == "redis-6.2":
        pytest.skip("Redis 6.2 does not count what a group has read")
    return every_server


async def add(redis: Any, count: int, maxlen: int | None = None) -> None:
    for _ in range(count):
        await redis.xadd(STREAM, {"n": 1}, maxlen=maxlen, approximate=False)


async def read(redis: Any, count: int) -> None:
    await redis.xreadgroup(GROUP, "c", {STREAM: ">"}, count=count)


async def trimmed(redis: Any) -> tuple[int | None, int | None]:
    """As the status sees it and as the keeper counts it."""
    seen = await inspect.trimmed_unread(redis, STREAM, GROUP)
    return seen, await inspect.trimmed_unread(redis, STREAM, GROUP, keep=True)


async def test_each_entry_that_was_lost_is_counted_once(counting_server: AnyServer) -> None:
    async with counting_server.client() as redis:
        await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        assert (await trimmed(redis))[1] == 0
        await add(redis, 10)
        await read(redis, 3)
        assert (await trimmed(redis))[1] == 0
        await add(redis, 20, maxlen=10)
        assert await trimmed(redis) == (17, 17) == await trimmed(redis)
        await read(redis, 2)
        assert await trimmed(redis) == (17, 17)
        await add(redis, 20, maxlen=10)
        assert await trimmed(redis) == (35, 35)
        await read(redis, 100)
        assert await trimmed(redis) == (35, 35)
        await add(redis, 1, maxlen=10)
        await read(redis, 1)
        await add(redis, 5, maxlen=3)
        assert await trimmed(redis) == (37, 37)
        (info,) = await inspect.groups(redis, [(STREAM, GROUP)])
        assert info.trimmed_unread == 37
        assert await redis.keys(f"{trimmed_key(STREAM, GROUP)}:*") == []


async def test_a_stream_that_is_deleted_and_made_again_is_counted_too(counting_server: AnyServer) -> None:
    async with counting_server.client() as redis:
        await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        await trimmed(redis)
        await add(redis, 20, maxlen=10)
        assert await trimmed(redis) == (10, 10)
        await redis.delete(STREAM)
        assert await trimmed(redis) == (10, 10)
        await add(redis, 15, maxlen=5)
        await redis.xgroup_create(STREAM, GROUP, "0")
        assert await trimmed(redis) == (20, 20) == await trimmed(redis)
        await add(redis, 4, maxlen=5)
        assert await trimmed(redis) == (24, 24)


async def test_entries_that_were_read_may_go(counting_server: AnyServer) -> None:
    async with counting_server.client() as redis:
        await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        await trimmed(redis)
        for _ in range(5):
            await add(redis, 20)
            await read(redis, 20)
            await redis.xtrim(STREAM, maxlen=0, approximate=False)
            assert await trimmed(redis) == (0, 0)


async def test_what_was_removed_before_the_group_began_does_not_count(counting_server: AnyServer) -> None:
    async with counting_server.client() as redis:
        await add(redis, 20, maxlen=5)
        await redis.xgroup_create(STREAM, GROUP, "0")
        assert await trimmed(redis) == (0, 0)
        await add(redis, 3, maxlen=5)
        assert await trimmed(redis) == (3, 3)


async def test_a_server_that_can_not_tell_says_so(every_server: AnyServer) -> None:
    async with every_server.client() as redis:
        await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        expected = None if every_server.flavour.name == "redis-6.2" else 0
        assert await inspect.trimmed_unread(redis, STREAM, GROUP) == expected
