"""Connections that were idle: a load balancer that forgets them swallows what is sent, without an error."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor import Message, handler
from supervisor.broker import blocking, group_reader, pipeline_connection, routed_connection
from supervisor.broker.command_connection import CommandConnection
from supervisor.broker.connect import client
from supervisor.broker.group_reader import GroupReader
from supervisor.publisher import Publisher
from supervisor.worker import consumer
from tests.redis.worker import working
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async

STREAM = "events"
#: Every load balancer remembers a connection for longer.
REMEMBERED_S = 60


@pytest.fixture
def proxy(redis_server: Any) -> Iterator[Proxy]:
    with Proxy(redis_server.url) as made:
        yield made


async def test_idle_tcp_connections_are_probed_by_the_kernel(proxy: Proxy) -> None:
    commands, reader = CommandConnection(proxy.url), GroupReader(proxy.url, [STREAM], "g", "c")
    redis = client(proxy.url)
    await commands.call("PING")
    await reader.connect()
    pooled = await redis.connection_pool.get_connection()
    for link in (commands._connection, reader._connection, pooled):
        own = link._writer.transport.get_extra_info("socket")
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < REMEMBERED_S
    await redis.connection_pool.release(pooled)
    await redis.aclose()
    await reader.close()
    await commands.close()


async def test_the_first_publish_after_a_pause_is_stored(
    proxy: Proxy, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_connection, "QUIET_S", 0.0)
    async with Publisher(proxy.url, timeout_s=1) as publisher:
        await publisher.publish(STREAM, {"n": "1"})
        assert proxy.swallow() == 1
        await publisher.publish(STREAM, {"n": "2"})
    assert await redis.xlen(STREAM) == 2


async def test_a_client_of_redis_py_is_as_good(proxy: Proxy, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_connection, "QUIET_S", 0.0)
    from redis.asyncio import Redis

    async with Redis.from_url(proxy.url) as own, Publisher(own, timeout_s=1) as publisher:
        await publisher.publish(STREAM, {"n": "1"})
        assert proxy.swallow() == 1
        await publisher.publish(STREAM, {"n": "2"})
    assert await redis.xlen(STREAM) == 2


async def test_a_keyed_publish_into_a_dead_connection_is_stored_in_its_time(proxy: Proxy, redis: Any) -> None:
    async with Publisher(proxy.url, timeout_s=2) as publisher:
        await publisher.publish(STREAM, {"n": "1"})
        assert proxy.swallow() == 1
        both = await asyncio.gather(
            publisher.publish(STREAM, {"n": "2"}, key="k"), publisher.publish(STREAM, {"n": "2"}, key="k")
        )
        assert both[0].id == both[1].id
        assert proxy.did["accepted"] == 2
        await publisher.publish(STREAM, {"n": "3"})
    assert await redis.xlen(STREAM) == 3


async def test_commands_after_a_pause_do_not_wait_for_a_forgotten_connection(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, redis = CommandConnection(proxy.url, limit_s=2), client(proxy.url, timeout_s=2)
    assert await commands.call("PING") == b"PONG"
    assert await redis.ping()
    assert proxy.swallow() == 2
    monkeypatch.setattr(routed_connection, "IDLE_MAX_S", 0.0)
    assert await commands.call("PING") == b"PONG"
    assert await redis.ping()
    await redis.aclose()
    await commands.close()


async def test_a_blocking_client_does_not_wait_for_a_forgotten_connection(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with blocking.blocking_client(proxy.url, timeout_s=2) as redis:
        assert await asyncio.to_thread(redis.ping)
        assert proxy.swallow() == 1
        monkeypatch.setattr(blocking, "IDLE_MAX_S", 0.0)
        assert await asyncio.to_thread(redis.ping)


@pytest.mark.long
async def test_a_paused_worker_notices_a_forgotten_connection(
    proxy: Proxy, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    @handler(STREAM, group="g")
    async def handle(message: Message) -> None:
        seen.append(message.fields["n"])

    monkeypatch.setattr(consumer, "KEEPALIVE_S", 0.05)
    monkeypatch.setattr(group_reader, "REPLY_SLACK_S", 0.3)
    async with working(proxy.url, handle, consumer={"block_ms": 50}) as worker:
        await worker.ready.wait()
        (reading,) = [c.executor for c in worker.runtime.consumers]
        worker.runtime.pause(True)
        before = proxy.did["accepted"]
        proxy.swallow()
        await eventually_async(lambda: proxy.did["accepted"] > before, what="it was made again in the pause")
        assert not reading.in_hand
        await redis.xadd(STREAM, {"n": "1"})
        worker.runtime.pause(False)
        await eventually_async(lambda: seen == ["1"])
