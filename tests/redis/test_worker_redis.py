"""What a worker must survive of its server and of the network between them, on the loop that it really runs on."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from supervisor import Message, handler
from supervisor.broker.command_connection import CommandConnection
from supervisor.broker.dead_letters import pages
from supervisor.broker.replay import REPLAYED, replay
from supervisor.errors import PublishRefusedError
from supervisor.keys import dead_key, replay_key
from supervisor.publisher import Publisher
from supervisor.shared_state import SlotField
from tests.redis.worker import GROUP, STREAM, pending, working
from tests.support.letters import add_dead_letter
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer, default_flavour
from tests.support.waiting import eventually_async

#: A worker's connection for all but its reads, and the ones that it reads from, have one name.
NAME = "supervisor-host:0"


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with Proxy(redis_url) as made:
        yield made


@pytest.fixture
def seen() -> Counter[str]:
    return Counter()


def counting(seen: Counter[str], **options: Any) -> Any:
    @handler(STREAM, group=GROUP, **options)
    async def handle(message: Message) -> None:
        seen[message.fields["n"]] += 1

    return handle


async def publish(redis: Redis, *names: object) -> list[bytes]:
    return [await redis.xadd(STREAM, {"n": str(name)}) for name in names]


async def settled(redis: Redis) -> bool:
    return await pending(redis) == 0


async def is_empty(redis: Redis, key: str) -> bool:
    return await redis.xlen(key) == 0


@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_connections_that_are_lost_while_idle(proxy: Proxy, redis: Redis, seen: Counter[str], how: str) -> None:
    """The settler's may rest for hours, and then find that it was reset long ago."""
    async with working(proxy.url, counting(seen)) as worker:
        for n in range(6):
            await publish(redis, n)
            await eventually_async(lambda n=n: seen[str(n)] == 1)  # type: ignore[misc]
            await worker.runtime.settlers[0].flush()
            assert getattr(proxy, how)() >= 1
            await asyncio.sleep(0.01)  # its end has heard of it
        await publish(redis, "last")
        await eventually_async(lambda: seen["last"] == 1)
        await eventually_async(lambda: settled(redis))
    assert set(seen.values()) == {1} and proxy.did[how] >= 6


async def test_connections_that_are_killed_at_random(redis_url: str, redis: Redis, seen: Counter[str]) -> None:
    rng, killed, published = random.Random(1), 0, 0
    async with working(redis_url, counting(seen)):
        while killed < 20:
            await publish(redis, *range(published, published + 20))
            published += 20
            mine = [row["id"] for row in await redis.client_list() if row["name"] == NAME]
            if mine and rng.random() < 0.5:
                killed += await redis.client_kill_filter(_id=rng.choice(mine))
            await asyncio.sleep(rng.random() * 0.02)
        await eventually_async(lambda: len(seen) == published)
        await eventually_async(lambda: settled(redis))
    assert max(seen.values()) <= 3


async def test_a_reset_in_the_middle_of_replies_and_requests(proxy: Proxy, redis: Redis, seen: Counter[str]) -> None:
    count = 3000
    await publish(redis, *range(count))
    async with working(proxy.url, counting(seen)) as worker:
        for turn in range(8):
            proxy.set(reset_after=3_000 * (turn + 1), reset_in="reply" if turn % 2 else "request")
            await eventually_async(lambda turn=turn: proxy.did["reset in the middle"] > turn)  # type: ignore[misc]
        proxy.set()
        await eventually_async(lambda: len(seen) == count)
        await worker.runtime.settlers[0].flush()
        await eventually_async(lambda: settled(redis))
    assert len(seen) == count and await redis.xlen(STREAM) == count


async def test_a_batch_that_no_reply_may_be_long_enough_for(seen: Counter[str]) -> None:
    """The server closes the connection when what it would send passes its limit, with the entries pending by then."""
    with RedisServer(default_flavour(), options=("--client-output-buffer-limit", "normal 1mb 0 0")) as server:
        async with server.client() as redis:
            for n in range(60):
                await redis.xadd(STREAM, {"n": n, "pad": b"x" * 200_000})
            async with working(server.url, counting(seen, batch_size=60)) as worker:
                await eventually_async(lambda: len(seen) == 60, 30)
                await eventually_async(lambda: settled(redis))
            closed = server.log.count("scheduled to be closed ASAP for overcoming of output buffer limits")
            assert closed >= 1 and worker.shared.get(SlotField.RECONNECTS) >= closed
            assert set(seen.values()) == {1}


@pytest.mark.long
async def test_an_entry_that_no_reply_may_be_long_enough_for(seen: Counter[str]) -> None:
    """It can't be read at all: it becomes a dead letter, whole, without ever leaving the server."""
    with RedisServer(default_flavour(), options=("--client-output-buffer-limit", "normal 1mb 0 0")) as server:
        async with server.client() as redis:
            await publish(redis, *range(10))
            large = await redis.xadd(STREAM, {"n": "large", "pad": b"\xff" * 2_000_000})
            await publish(redis, *range(10, 20))
            async with working(server.url, counting(seen)) as worker:
                await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1, 40)
                await publish(redis, "new")
                await eventually_async(lambda: seen["new"] == 1)
                await eventually_async(lambda: settled(redis))
            assert set(seen.values()) == {1} and len(seen) == 21
            # The whole letter could not be read either.
            await redis.config_set("client-output-buffer-limit", "normal 0 0 0")
            [(_, letter)] = await redis.xrange(dead_key(STREAM, GROUP))
            assert (letter[b"id"], letter[b"field:n"]) == (large, b"large")
            assert len(letter[b"field:pad"]) == 2_000_000 and b"client-output-buffer-limit" in letter[b"reason"]


@pytest.mark.long
async def test_a_copy_that_no_reply_may_be_long_enough_for_stays_a_letter_of_its_message(seen: Counter[str]) -> None:
    with RedisServer(default_flavour()) as server:
        async with server.client() as redis:
            with server.sync() as sync:
                _, entry = add_dead_letter(
                    sync, STREAM, GROUP, {"n": "large", "pad": b"\xff" * 2_000_000}, trimmed=True
                )
            [letters] = [page async for page in pages(redis, STREAM, GROUP)]
            assert [outcome.outcome for outcome in await replay(redis, letters)] == [REPLAYED]
            await redis.config_set("client-output-buffer-limit", "normal 1mb 0 0")
            async with working(server.url, counting(seen)) as worker:
                await eventually_async(lambda: worker.shared.get(SlotField.DEAD) == 1, 40)
                await eventually_async(lambda: is_empty(redis, replay_key(STREAM, GROUP)))
            await redis.config_set("client-output-buffer-limit", "normal 0 0 0")
            [(_, letter)] = await redis.xrange(dead_key(STREAM, GROUP))
            assert letter[b"id"].decode() == entry and b"client-output-buffer-limit" in letter[b"reason"]
            fields = {name: value for name, value in letter.items() if name.startswith(b"field:")}
            assert fields == {b"field:n": b"large", b"field:pad": b"\xff" * 2_000_000} and not seen


@pytest.mark.long
async def test_an_entry_that_a_bad_network_keeps_back_is_no_dead_letter(
    proxy: Proxy, redis: Redis, seen: Counter[str]
) -> None:
    async with working(proxy.url, counting(seen)) as worker:
        await eventually_async(worker.ready.is_set)
        proxy.set(reset_after=2_000, reset_in="reply")
        await redis.xadd(STREAM, {"n": "1", "pad": b"x" * 20_000})
        await eventually_async(lambda: worker.shared.get(SlotField.RECONNECTS) >= 12, 40)
        proxy.set()
        await eventually_async(lambda: seen["1"] == 1)
        await eventually_async(lambda: settled(redis))
        assert proxy.did["reset in the middle"] >= 12 and worker.shared.get(SlotField.DEAD) == 0


@pytest.mark.long
async def test_a_large_entry_and_its_letter_on_a_slow_link(proxy: Proxy, redis: Redis, seen: Counter[str]) -> None:
    """Each takes longer than a read of the pending list, or a pipeline, has by itself."""
    bad: list[str] = []

    @handler(STREAM, group=GROUP, max_deliveries=1)
    async def handle(message: Message) -> None:
        bad.append(message.fields["n"])
        raise ValueError("no")

    await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    await redis.xadd(STREAM, {"n": 1, "pad": b"x" * 2_200_000})
    await redis.xreadgroup(GROUP, "host:0", {STREAM: ">"})
    proxy.set(bytes_per_s=420_000, slice_bytes=20_000)
    async with working(proxy.url, handle) as worker:
        await eventually_async(lambda: settled(redis), 60)
        assert worker.shared.get(SlotField.RECONNECTS) >= 2
    assert bad == ["1"] and await redis.xlen(dead_key(STREAM, GROUP)) == 1


async def test_a_server_that_was_replaced_behind_its_address(proxy: Proxy, redis: Redis, seen: Counter[str]) -> None:
    """The old one lives on as the new one's replica, and its connections stay open."""
    hold = asyncio.Event()

    @handler(STREAM, group=GROUP)
    async def handle(message: Message) -> None:
        await hold.wait()
        seen[message.fields["n"]] += 1

    with RedisServer(default_flavour(), tcp=True, options=("--repl-diskless-sync-delay", "0")) as new:
        async with new.client() as after, Publisher(proxy.url) as publisher:
            await publisher.publish(STREAM, {"n": "before"})
            async with working(proxy.url, handle, consumer={"block_ms": 500}) as worker:
                await eventually_async(lambda: worker.runtime.consumers[0].executor.running == 1)
                await after.replicaof("127.0.0.1", proxy.port)
                await eventually_async(lambda: pending(after))
                await after.replicaof("NO", "ONE")
                proxy.upstream = new.url
                await redis.replicaof("127.0.0.1", new.port)
                hold.set()
                await eventually_async(lambda: settled(after))
                with pytest.raises(PublishRefusedError, match="read only"):
                    await publisher.publish(STREAM, {"n": "refused"})
                await publisher.publish(STREAM, {"n": "after"})
                await eventually_async(lambda: seen["after"] == 1)
                await eventually_async(lambda: settled(after))
                assert any("read only" in str(error) for _, error, _ in worker.faults)
            assert seen == {"before": 1, "after": 1} and "cut" not in proxy.did


async def test_no_connection_looks_for_the_version_of_redis_py(
    monkeypatch: pytest.MonkeyPatch, redis_server: Any
) -> None:
    """It would search all packages, which took a third of a worker's start."""

    def find(_package: str) -> str:
        raise AssertionError("a search for a package")

    monkeypatch.setattr("importlib.metadata.version", find)
    commands = CommandConnection(redis_server.url)
    assert await commands.call("PING") == b"PONG"
    await commands.close()
