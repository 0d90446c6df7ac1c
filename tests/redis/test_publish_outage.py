"""What a publish is answered while Redis is silent or loads its data, and whether that answer stays true."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.node_router import NodeRouter
from supervisor.broker.routes import Address, SlotRange
from supervisor.errors import PublishError, PublishRefusedError, PublishUnknownError
from supervisor.keys import later_key
from supervisor.publisher import BATCH_MAX, Publisher
from tests.support.servers import RedisServer, default_binary

STREAM = "events"
LIMIT_S = 1.0


async def numbers(redis: Any) -> list[str]:
    return [fields[b"n"].decode() for _, fields in await redis.xrange(STREAM)]


async def is_on_the_way(publisher: Publisher) -> None:
    while not publisher._router._only._small._sending:
        await asyncio.sleep(0)


async def test_a_refused_publish_is_not_sent_with_a_later_one(redis_server: Any, redis: Any) -> None:
    async with Publisher(redis_server.url, timeout_s=LIMIT_S) as publisher:
        await publisher.publish(STREAM, {"n": "before"})
        redis_server.pause()
        try:
            lost = asyncio.create_task(publisher.publish(STREAM, {"n": "lost"}))
            await is_on_the_way(publisher)
            await asyncio.sleep(LIMIT_S / 4)
            early = asyncio.create_task(publisher.publish(STREAM, {"n": "early"}))
            await asyncio.sleep(LIMIT_S / 2)
            late = asyncio.create_task(publisher.publish(STREAM, {"n": "late"}))
            with pytest.raises(PublishUnknownError):
                await lost
            # Both go to one pipeline, which waits for a new connection.
            with pytest.raises(PublishRefusedError):
                await early
        finally:
            redis_server.resume()
        await asyncio.wait([late])
        await publisher.publish(STREAM, {"n": "after"})
    assert "early" not in await numbers(redis)


async def test_a_publish_that_was_written_before_its_time_was_over_is_unknown(redis_server: Any, redis: Any) -> None:
    async with Publisher(redis_server.url, timeout_s=LIMIT_S) as publisher:
        await publisher.publish(STREAM, {"n": "before"})
        redis_server.pause()
        try:
            with pytest.raises(PublishUnknownError):
                await publisher.publish(STREAM, {"n": "written"})
        finally:
            redis_server.resume()
        await publisher.publish(STREAM, {"n": "after"})
    assert set(await numbers(redis)) == {"before", "written", "after"}


async def test_a_publish_for_later_that_was_not_sent_is_refused(redis_server: Any, redis: Any) -> None:
    """The stream is noted first; without an answer to that, the message is not sent."""
    async with Publisher(redis_server.url, timeout_s=LIMIT_S) as publisher:
        await publisher.publish(STREAM, {"n": "before"})
        redis_server.pause()
        try:
            with pytest.raises(PublishRefusedError):
                await publisher.publish(STREAM, {"n": "later"}, after_s=60)
        finally:
            redis_server.resume()
        await publisher.publish(STREAM, {"n": "after"})
    assert not await redis.exists(later_key(STREAM))


async def test_the_time_limit_counts_from_the_beginning(redis_server: Any) -> None:
    router = NodeRouter(redis_server.url, timeout_s=60)
    loop = asyncio.get_running_loop()
    redis_server.pause()
    try:
        with pytest.raises(PublishError):
            async with asyncio.timeout(30):
                await router.send(STREAM, lambda node: node.command("PING"), began_s=loop.time() - 59.9)
    finally:
        redis_server.resume()
    await router.close()


@pytest.mark.parametrize("key", [None, "17"])
async def test_a_large_batch_that_is_not_written_to_its_end_stores_nothing(
    redis_server: Any, redis: Any, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    """A transaction runs at its last command and a script at its last byte: until that is written, it is refused."""
    monkeypatch.setattr("supervisor.broker.publish_pipeline._LARGE_BYTES_PER_S", 1e12)
    async with Publisher(redis_server.url, timeout_s=LIMIT_S) as publisher:
        warm = [{"n": "warm", "data": "x" * 100}] * 600
        await publisher.publish_many(STREAM, warm)
        redis_server.pause()
        try:
            with pytest.raises(PublishRefusedError):
                await publisher.publish_many(STREAM, [{"n": "large", "data": "x" * 100_000}] * 100, key=key)
        finally:
            redis_server.resume()
        await publisher.publish_many(STREAM, warm)
    assert await numbers(redis) == ["warm"] * 1200


async def test_a_batch_gets_the_time_that_its_bytes_take(redis_server: Any, redis: Any) -> None:
    async with Publisher(redis_server.url, timeout_s=0.05) as publisher:
        ids = await publisher.publish_many(STREAM, [{"n": str(n), "data": "x" * 1_000} for n in range(BATCH_MAX)])
    assert len(ids) == BATCH_MAX == await redis.xlen(STREAM)


async def test_small_publishes_do_not_wait_for_a_large_batch(redis_server: Any, redis: Any) -> None:
    async with Publisher(redis_server.url) as publisher:
        await publisher.publish_many(STREAM, [{"n": "warm"}] * 600)
        large = asyncio.create_task(publisher.publish_many(STREAM, [{"n": "l", "data": "x" * 1_000}] * BATCH_MAX))
        await asyncio.sleep(0)
        small = 0
        while not large.done():
            await publisher.publish(STREAM, {"n": "small"})
            small += not large.done()
        assert len(await large) == BATCH_MAX
    assert small > 10


class SlowLoader(RedisServer):
    """Takes a while to load its data, and answers LOADING meanwhile."""

    def _up(self) -> bool:
        try:
            with self.sync() as client:
                return bool(client.ping())
        except BusyLoadingError:
            return True
        except RedisConnectionError:
            return False


@pytest.fixture
def slow_loader() -> Iterator[SlowLoader]:
    options = ("--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024")
    with SlowLoader(default_binary(), options=options) as server:
        yield server


async def test_a_server_that_loads_its_data_refuses(slow_loader: SlowLoader) -> None:
    with slow_loader.sync() as client:
        client.mset({f"key:{number}": "x" * 2_000 for number in range(1_000)})
        client.save()
    slow_loader.kill()
    slow_loader.start()
    async with Publisher(slow_loader.url, timeout_s=10) as publisher:
        for attempt in (
            publisher.publish(STREAM, {"n": 1}),
            publisher.publish(STREAM, {"n": 1}, key="k"),
            publisher.publish_many(STREAM, [{"n": 1}] * 3),
        ):
            with pytest.raises(PublishRefusedError) as caught:
                await attempt
            assert caught.value.code == "LOADING"


async def test_a_slow_lookup_in_a_cluster_leaves_the_publish_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1") as node:
        address = Address(*node.sockets[0].getsockname())
        router = NodeRouter(f"redis+cluster://{address.host}:{address.port}", timeout_s=LIMIT_S)

        async def slots() -> list[SlotRange]:
            await asyncio.sleep(LIMIT_S * 0.8)
            return [SlotRange(0, 16383, address)]

        monkeypatch.setattr(router._cluster, "slots", slots)
        began_s = asyncio.get_running_loop().time()
        with pytest.raises(PublishRefusedError, match="no answer within"):
            await router.send(STREAM, lambda node: node.command("XADD", STREAM, "*", "n", 1))
        assert asyncio.get_running_loop().time() - began_s < LIMIT_S * 1.5
        await router.close()


async def test_a_connection_that_answers_after_all_is_kept(redis_server: Any, redis: Any) -> None:
    """It was silent for long, so its job went over a second one, too. Meanwhile it has the next job in hand."""
    async with Publisher(redis_server.url, timeout_s=30) as publisher:
        await publisher.publish(STREAM, {"n": "warm"}, key="warm")
        queue = publisher._router._only._small
        first, second = SlowAnswers(queue._connection), SlowAnswers(queue._connection.twin())
        queue._connection.twin = lambda: second.connection
        early = asyncio.create_task(publisher.publish(STREAM, {"n": "early"}, key="early"))
        await first.asked.wait()
        queue._send_elsewhere_soon(queue._sending)
        (elsewhere,) = queue._elsewhere
        await second.asked.wait()
        first.answer()
        await early
        late = asyncio.create_task(publisher.publish(STREAM, {"n": "late"}))
        await first.asked.wait()
        second.answer()
        await elsewhere
        first.answer()
        await late
    assert await numbers(redis) == ["warm", "early", "late"]


async def test_a_large_batch_is_answered_in_its_own_time(
    redis_server: Any, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before it has longer, since it waited for a much larger one."""
    monkeypatch.setattr("supervisor.broker.publish_pipeline._LARGE_BYTES_PER_S", 1e6)
    async with Publisher(redis_server.url, timeout_s=LIMIT_S / 4) as publisher:
        await publisher.publish(STREAM, {"n": "warm"})
        queue = publisher._router._only._large
        answers = SlowAnswers(queue._connection)
        huge = asyncio.create_task(publisher.publish_many(STREAM, [{"n": "huge", "data": "x" * 10_000}] * 600))
        before = asyncio.create_task(publisher.publish_many(STREAM, [{"n": "before"}] * 600))
        await answers.asked.wait()
        answers.answer()
        await huge
        await answers.asked.wait()
        timer = queue._timer
        with pytest.raises(PublishRefusedError):
            await publisher.publish_many(STREAM, [{"n": "late"}] * 600)
        assert queue._timer is timer, "the one before it has seconds left"
        answers.answer()
        await before
    assert set(await numbers(redis)) == {"warm", "huge", "before"}


class SlowAnswers:
    """Has the answers that come over a connection wait."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        #: Somebody waits for an answer.
        self.asked = asyncio.Event()
        self._may_answer = asyncio.Event()
        self._replies = connection.replies
        connection.replies = self._later

    async def _later(self, count: int) -> Any:
        self.asked.set()
        await self._may_answer.wait()
        self._may_answer.clear()
        return await self._replies(count)

    def answer(self) -> None:
        """Let the answer through that somebody waits for."""
        self.asked.clear()
        self._may_answer.set()
