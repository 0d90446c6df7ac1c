"""Connections that were idle: a load balancer that forgets them swallows what is sent, without an error."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor import Message, handler
from supervisor.broker import blocking, pipeline_connection, routed_connection
from supervisor.broker.command_connection import CommandConnection
from supervisor.broker.connect import client
from supervisor.broker.group_reader import GroupReader
from supervisor.publisher import Publisher
from supervisor.shared_state import SharedState, SlotField
from tests.redis.worker import Worker, working
from tests.support.proxy import Proxy
from tests.support.waiting import eventually_async

STREAM = "events"
#: Every load balancer remembers a connection for longer.
REMEMBERED_S = 60
#: What the tests put for the time after which a connection is made again.
IDLE_S = 0.3


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


class Held:
    """A handler that waits until it may go on."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.go_on = asyncio.Event()
        self.running = 0

        @handler(STREAM, group="g", concurrency=1)
        async def handle(message: Message) -> None:
            self.running += 1
            await self.go_on.wait()
            self.seen.append(message.fields["n"])

        self.handle = handle


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    monkeypatch.setattr(routed_connection, "IDLE_MAX_S", IDLE_S)
    return Held()


async def forget_idle(worker: Worker, proxy: Proxy) -> None:
    """Have the worker's connections forgotten once they were idle for too long."""
    (consumer,) = worker.runtime.consumers
    both: list[Any] = [consumer._reader._connection, consumer._resources.commands._connection]
    await eventually_async(lambda: all(one.idle_s > IDLE_S for one in both))
    assert proxy.swallow()


async def test_a_worker_that_was_paused_reads_over_a_new_connection(proxy: Proxy, redis: Any, held: Held) -> None:
    held.go_on.set()
    async with working(proxy.url, held.handle, consumer={"block_ms": 50}) as worker:
        await worker.ready.wait()
        worker.runtime.pause(True)
        await forget_idle(worker, proxy)
        await redis.xadd(STREAM, {"n": "1"})
        worker.runtime.pause(False)
        await eventually_async(lambda: held.seen == ["1"])
    assert not worker.faults


async def test_a_worker_that_starts_in_a_pause_reads_over_a_new_connection(
    proxy: Proxy, redis: Any, held: Held
) -> None:
    held.go_on.set()
    await redis.xadd(STREAM, {"n": "1"})
    await redis.xgroup_create(STREAM, "g", "0")
    await redis.xreadgroup("g", "host:0", {STREAM: ">"})
    async with working(proxy.url, held.handle) as worker:
        worker.runtime.pause(True)
        await worker.ready.wait()
        await forget_idle(worker, proxy)
        await redis.xadd(STREAM, {"n": "2"})
        assert not held.running
        worker.runtime.pause(False)
        await eventually_async(lambda: held.seen == ["1", "2"])
    assert not worker.faults


async def test_a_worker_with_a_slow_handler_reads_over_a_new_connection(proxy: Proxy, redis: Any, held: Held) -> None:
    async with working(proxy.url, held.handle, consumer={"block_ms": 50}) as worker:
        await redis.xadd(STREAM, {"n": "1"})
        await eventually_async(lambda: held.running)
        await forget_idle(worker, proxy)
        await redis.xadd(STREAM, {"n": "2"})
        held.go_on.set()
        await eventually_async(lambda: held.seen == ["1", "2"])
    assert not worker.faults


async def test_a_worker_that_ran_a_suspect_alone_reads_over_a_new_connection(
    proxy: Proxy, redis: Any, held: Held
) -> None:
    shared = SharedState()
    first = Worker(proxy.url, [held.handle], shared)
    await redis.xadd(STREAM, {"n": "1"})
    await eventually_async(lambda: held.running == 1)
    await first.vanish()
    worker = Worker(proxy.url, [held.handle], shared)
    await eventually_async(lambda: held.running == 2)
    await forget_idle(worker, proxy)
    await redis.xadd(STREAM, {"n": "2"})
    held.go_on.set()
    await eventually_async(lambda: held.seen == ["1", "2"])
    await worker.stop()
    assert not worker.faults


async def test_a_connection_that_waits_at_the_server_is_not_idle(proxy: Proxy, held: Held) -> None:
    async with working(proxy.url, held.handle, consumer={"block_ms": int(2000 * IDLE_S)}) as worker:
        await worker.ready.wait()
        fetched, made = worker.shared.get(SlotField.FETCH_NS), proxy.did["accepted"]
        await eventually_async(lambda: worker.shared.get(SlotField.FETCH_NS) > fetched)
        fetched = worker.shared.get(SlotField.FETCH_NS)
        await eventually_async(lambda: worker.shared.get(SlotField.FETCH_NS) > fetched)
        assert proxy.did["accepted"] == made
