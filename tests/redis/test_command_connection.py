"""Commands over one connection, on a real server: replies in order, and never the reply of another command."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from supervisor.broker import routed_connection
from supervisor.broker.command_connection import CommandConnection, pack_command
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async


@pytest.fixture
def proxy(redis_server: Any) -> Iterator[Proxy]:
    with Proxy(redis_server.url) as made:
        yield made


@pytest.fixture
async def one(proxy: Proxy) -> AsyncIterator[CommandConnection]:
    """A connection through the proxy, connected."""
    made = CommandConnection(proxy.url)
    assert await made.call("PING") == b"PONG"
    yield made
    await made.close()


async def test_replies_come_in_the_order_of_the_commands(one: CommandConnection, proxy: Proxy) -> None:
    proxy.set(slice_bytes=7)
    found = await one.pipeline([pack_command(("ECHO", str(n) * n)) for n in range(50)])
    assert found == [str(n).encode() * n for n in range(50)]


async def test_an_error_stands_at_its_place(one: CommandConnection) -> None:
    packed = [pack_command(words) for words in (("SET", "k", "v"), ("XLEN", "k"), ("GET", "k"))]
    stored, refused, read = await one.pipeline(packed)
    assert (stored, read) == (b"OK", b"v")
    assert isinstance(refused, ResponseError)
    assert "WRONGTYPE" in str(refused)


async def test_after_an_error_the_connection_is_still_used(one: CommandConnection, proxy: Proxy) -> None:
    with pytest.raises(ResponseError):
        await one.call("NOSUCHCOMMAND")
    assert await one.call("ECHO", "next") == b"next"
    assert proxy.did["accepted"] == 1


async def test_callers_take_turns(one: CommandConnection, proxy: Proxy) -> None:
    proxy.set(latency_s=0.005)
    found = await asyncio.gather(*(one.call("ECHO", str(n)) for n in range(20)))
    assert found == [str(n).encode() for n in range(20)]


async def test_a_cancelled_command_leaves_no_reply_for_the_next(one: CommandConnection, proxy: Proxy) -> None:
    (link,) = proxy.connections()
    before = link.passed["request"]
    task = asyncio.create_task(one.call("BLPOP", "nothing", "0"))
    await eventually_async(lambda: link.passed["request"] > before, what="the command was sent")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await one.call("ECHO", "next") == b"next"
    assert proxy.did["accepted"] == 2


async def test_a_connection_that_breaks_under_a_command_is_an_error_once(one: CommandConnection, proxy: Proxy) -> None:
    proxy.set(reset_after=1)
    with pytest.raises((RedisConnectionError, OSError)):
        await one.call("ECHO", "lost")
    proxy.set()
    assert await one.call("ECHO", "next") == b"next"


async def test_a_connection_that_broke_between_two_commands_is_replaced(one: CommandConnection, proxy: Proxy) -> None:
    assert proxy.cut() == 1
    await eventually_async(lambda: one._replies is None or one._replies.is_lost, what="the end was noticed")
    assert await one.call("ECHO", "next") == b"next"
    assert proxy.did["accepted"] == 2


async def test_an_idle_connection_is_replaced(
    one: CommandConnection, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routed_connection, "IDLE_MAX_S", 0.0)
    assert await one.call("ECHO", "next") == b"next"
    assert proxy.did["accepted"] == 2


async def test_a_server_that_is_silent_is_given_up(proxy: Proxy) -> None:
    one = CommandConnection(proxy.url, limit_s=0.2)
    assert await one.call("PING") == b"PONG"
    assert proxy.swallow() == 1
    with pytest.raises((RedisConnectionError, TimeoutError)):
        await one.call("ECHO", "swallowed")
    await one.close()
