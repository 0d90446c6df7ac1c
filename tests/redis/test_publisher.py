"""The publisher on real servers: pipelines, keys, and what becomes of a publish when Redis fails."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from api.publish_figures import CountingPublisher, Produced
from supervisor.broker.publish_pipeline import COMMANDS_MAX, QUEUED_JOBS_MAX
from supervisor.core.confirmation import Confirmation
from supervisor.errors import (
    EncodeError,
    IdempotencyError,
    PublishRefusedError,
    PublishUnknownError,
    UsageError,
)
from supervisor.keys import idempotency_key
from supervisor.publisher import BATCH_MAX, KEY_TTL_S, Published, Publisher

STREAM = "events"


@pytest.fixture
async def publisher(redis_url: str) -> AsyncIterator[Publisher]:
    async with Publisher(redis_url, timeout_s=5) as made:
        yield made


async def texts(redis: Any, name: bytes = b"n", stream: str = STREAM) -> list[str]:
    return [fields[name].decode() for _, fields in await redis.xrange(stream)]


async def commands_processed(redis: Any, name: str) -> int:
    stats = await redis.info("commandstats")
    return stats.get(f"cmdstat_{name}", {}).get("calls", 0)


class Event(BaseModel):
    n: int
    nested: dict[str, int]


class Relay:
    """A proxy in front of a server, which loses answers or swallows everything on demand."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        self.lose_answers = False
        self.swallow = False
        self.lost = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up_reader, up_writer = await asyncio.open_unix_connection(self.socket_path)

        async def forth() -> None:
            while data := await reader.read(65536):
                if not self.swallow:
                    up_writer.write(data)
            up_writer.close()

        async def back() -> None:
            while data := await up_reader.read(65536):
                if self.lose_answers:
                    self.lost += 1
                    self.lose_answers = False
                    break
                writer.write(data)
            writer.close()

        with contextlib.suppress(OSError):
            await asyncio.gather(forth(), back())


@pytest.fixture
async def relay(redis_server: Any) -> AsyncIterator[Relay]:
    made = Relay(str(redis_server.socket))
    yield made
    await made.close()


async def test_publishes_mappings_models_and_nested_values(publisher: Publisher, redis: Any) -> None:
    first = await publisher.publish(STREAM, {"n": 1, "text": "é", "nothing": None})
    second = await publisher.publish(STREAM, Event(n=2, nested={"a": 1}))
    entries = await redis.xrange(STREAM)
    assert [entry.decode() for entry, _ in entries] == [first.id, second.id]
    assert entries[0][1] == {b"n": b"1", b"text": "é".encode(), b"nothing": b"null"}
    assert entries[1][1] == {b"n": b"2", b"nested": b'{"a":1}'}
    with pytest.raises(EncodeError):
        await publisher.publish(STREAM, {})


async def test_a_turn_is_one_pipeline_in_order(publisher: Publisher, redis: Any) -> None:
    await publisher.publish(STREAM, {"n": "warm"})
    sent: list[int] = []
    link = publisher._router._only._small._connection
    original = link.send

    async def counted(packed: Any) -> None:
        sent.append(len(packed))
        await original(packed)

    link.send = counted  # type: ignore[method-assign]
    count = COMMANDS_MAX + 100
    published = await asyncio.gather(*(publisher.publish(STREAM, {"n": n}) for n in range(count)))
    # On a busy machine the connection may have been idle long enough to be tested before it is used.
    assert [commands for commands in sent if commands > 1] == [COMMANDS_MAX, 100]
    assert await texts(redis) == ["warm", *map(str, range(count))]
    assert [p.id for p in published] == [entry.decode() for entry, _ in (await redis.xrange(STREAM))[1:]]


async def test_a_refused_one_does_not_disturb_the_others(publisher: Publisher, redis: Any) -> None:
    await redis.set("text", "no stream")
    results = await asyncio.gather(
        publisher.publish(STREAM, {"n": 0}),
        publisher.publish("text", {"n": 1}),
        publisher.publish("text", {"n": 1}, key="k"),
        publisher.publish_many("text", [{"n": 1}]),
        publisher.publish(STREAM, {"n": 2}),
        return_exceptions=True,
    )
    assert isinstance(results[0], Published) and isinstance(results[4], Published)
    for refused in results[1:4]:
        assert isinstance(refused, PublishRefusedError) and refused.code == "WRONGTYPE"
    assert await texts(redis) == ["0", "2"]
    assert not await redis.exists(idempotency_key("text", "k"))


async def test_a_cancelled_caller_does_not_disturb_the_others(publisher: Publisher, redis: Any) -> None:
    tasks = [asyncio.create_task(publisher.publish(STREAM, {"n": n})) for n in range(5)]
    await asyncio.sleep(0)
    tasks[1].cancel()  # before it was sent
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], asyncio.CancelledError)
    assert await texts(redis) == ["0", "2", "3", "4"]
    assert all(isinstance(result, Published) for n, result in enumerate(results) if n != 1)


async def test_a_caller_cancelled_on_the_way_leaves_answers_in_step(
    publisher: Publisher, redis: Any, redis_server: Any
) -> None:
    await publisher.publish(STREAM, {"n": "warm"})
    redis_server.pause()
    tasks = [asyncio.create_task(publisher.publish(STREAM, {"n": n})) for n in range(3)]
    while not publisher._router._only._small._sending:
        await asyncio.sleep(0)
    tasks[0].cancel()
    redis_server.resume()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    entries = {entry.decode(): fields[b"n"] for entry, fields in await redis.xrange(STREAM)}
    assert isinstance(results[0], asyncio.CancelledError)
    assert [entries[result.id] for result in results[1:]] == [b"1", b"2"]  # type: ignore[union-attr]


async def test_many_are_all_or_nothing(publisher: Publisher, redis: Any) -> None:
    ids = await publisher.publish_many(STREAM, ({"n": n} for n in range(1234)))
    assert ids == [entry.decode() for entry, _ in await redis.xrange(STREAM)]
    assert await publisher.publish_many(STREAM, []) == []
    with pytest.raises(EncodeError):
        await publisher.publish_many(STREAM, [{"n": 1}, {}])
    with pytest.raises(UsageError, match=str(BATCH_MAX)):
        await publisher.publish_many(STREAM, [{"n": 1}] * (BATCH_MAX + 1))
    assert await redis.xlen(STREAM) == 1234


async def test_a_key_stores_once(every_server: Any) -> None:
    async with Publisher(every_server.url) as publisher, every_server.client() as redis:
        first = await publisher.publish(STREAM, {"a": 1, "b": 2}, key="k")
        again = await publisher.publish(STREAM, {"b": 2, "a": 1}, key="k")
        assert (first.replayed, again) == (False, Published(first.id, True))
        with pytest.raises(IdempotencyError):
            await publisher.publish(STREAM, {"a": 1, "b": 3}, key="k")
        other = await publisher.publish(STREAM, {"a": 1, "b": 2}, key="other")
        assert other.id != first.id and not other.replayed
        assert await redis.xlen(STREAM) == 2
        assert KEY_TTL_S - 5 < await redis.ttl(idempotency_key(STREAM, "k")) <= KEY_TTL_S
        batch = await publisher.publish_batch(STREAM, [{"n": "1"}, {"n": "2"}], key="batch")
        assert await publisher.publish_batch(STREAM, [{"n": "1"}, {"n": "2"}], key="batch") == (batch.ids, True, None)
        assert await redis.xlen(STREAM) == 4


async def test_fields_can_not_be_shifted_between_messages(publisher: Publisher) -> None:
    await publisher.publish_many(STREAM, [{"a": "b"}, {"c": "d"}], key="k")
    with pytest.raises(IdempotencyError):
        await publisher.publish_many(STREAM, [{"a": "b", "c": "d"}], key="k")


async def test_concurrent_publishes_with_one_key_store_once(publisher: Publisher, redis: Any) -> None:
    await redis.script_flush()
    before = await commands_processed(redis, "eval")
    results = await asyncio.gather(*(publisher.publish(STREAM, {"n": 1}, key="k") for _ in range(50)))
    assert len({result.id for result in results}) == 1
    assert sum(not result.replayed for result in results) == 1
    assert await redis.xlen(STREAM) == 1
    assert await commands_processed(redis, "eval") > before  # the server did not know the script


async def test_out_of_memory_stores_nothing_and_says_so(publisher: Publisher, redis: Any) -> None:
    await publisher.publish(STREAM, {"n": 0}, key="warm")
    await redis.config_set("maxmemory", 1)
    try:
        for attempt in (
            publisher.publish(STREAM, {"n": 1}),
            publisher.publish(STREAM, {"n": 1}, key="k"),
            publisher.publish_many(STREAM, [{"n": 1}] * 3),
        ):
            with pytest.raises(PublishRefusedError) as caught:
                await attempt
            assert caught.value.code == "OOM"
    finally:
        await redis.config_set("maxmemory", 0)
    assert await redis.xlen(STREAM) == 1
    assert not await redis.exists(idempotency_key(STREAM, "k"))
    assert not (await publisher.publish(STREAM, {"n": 1}, key="k")).replayed


async def test_a_lost_answer_is_not_sent_again_without_a_key(relay: Relay, redis: Any) -> None:
    async with Publisher(await relay.start()) as publisher:
        await publisher.publish(STREAM, {"n": 0})
        relay.lose_answers = True
        with pytest.raises(PublishUnknownError):
            await publisher.publish(STREAM, {"n": 1})
        assert relay.lost == 1
        assert await texts(redis) == ["0", "1"]  # it was stored, once
        await publisher.publish(STREAM, {"n": 2})
        assert await texts(redis) == ["0", "1", "2"]


async def test_a_lost_answer_is_asked_for_again_with_a_key(relay: Relay, redis: Any) -> None:
    async with Publisher(await relay.start()) as publisher:
        await publisher.publish(STREAM, {"n": 0}, key="warm")
        relay.lose_answers = True
        found = await publisher.publish(STREAM, {"n": 1}, key="k")
        assert relay.lost == 1
        assert found.replayed and await texts(redis) == ["0", "1"]


async def test_a_black_hole_is_answered_in_time(relay: Relay, redis: Any) -> None:
    limit_s = 1.0
    async with Publisher(await relay.start(), timeout_s=limit_s) as publisher:
        await publisher.publish(STREAM, {"n": 0})
        relay.swallow = True
        two_limits = asyncio.create_task(asyncio.sleep(2 * limit_s))
        on_the_way = asyncio.create_task(publisher.publish(STREAM, {"n": 1}))
        while not publisher._router._only._small._sending:
            await asyncio.sleep(0)
        waiting = asyncio.create_task(publisher.publish(STREAM, {"n": 2}))
        results = await asyncio.gather(on_the_way, waiting, return_exceptions=True)
        assert not two_limits.done(), "they have waited beside each other"
        two_limits.cancel()
        assert isinstance(results[0], PublishUnknownError)
        assert isinstance(results[1], PublishRefusedError | PublishUnknownError)
        relay.swallow = False
        assert (await publisher.publish(STREAM, {"n": 3})).id
        assert await texts(redis) == ["0", "3"]


async def test_a_restart_while_idle_goes_unnoticed(publisher: Publisher, redis_server: Any) -> None:
    await publisher.publish(STREAM, {"n": 0})
    await asyncio.to_thread(redis_server.restart)
    assert (await publisher.publish(STREAM, {"n": 1})).id


async def test_a_dead_server_refuses_at_once_and_nothing_is_kept(publisher: Publisher, redis_server: Any) -> None:
    await publisher.publish(STREAM, {"n": 0})
    await asyncio.to_thread(redis_server.kill)
    results = await asyncio.gather(
        *(publisher.publish(STREAM, {"n": n}, key=key) for n in range(100) for key in (None, f"k{n}")),
        return_exceptions=True,
    )
    assert {type(result) for result in results} == {PublishRefusedError}
    assert {result.code for result in results} == {"UNREACHABLE"}  # type: ignore[union-attr]
    redis_server.start()
    await publisher.publish(STREAM, {"n": "after"})
    async with redis_server.client() as redis:
        assert await texts(redis) == ["after"]


async def test_the_queue_is_bounded(redis_url: str, redis: Any) -> None:
    async with Publisher(redis_url, timeout_s=60) as publisher:
        await fill_the_queue(publisher, redis)


async def test_a_message_that_is_too_large_for_the_queue_is_refused_with_both_sizes(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.broker.publish_pipeline.QUEUED_BYTES_MAX", 1_000)
    with pytest.raises(PublishRefusedError, match=r"no room for 2,0\d\d bytes: 0 publishes .* with 1,000 bytes may"):
        await publisher.publish(STREAM, {"n": "x" * 2_000})


async def fill_the_queue(publisher: Publisher, redis: Any) -> None:
    tasks = [asyncio.create_task(publisher.publish(STREAM, {"n": n})) for n in range(QUEUED_JOBS_MAX + 10)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [result for result in results if isinstance(result, PublishRefusedError)]
    assert len(refused) == 10 and {error.code for error in refused} == {"FULL"}
    assert await redis.xlen(STREAM) == QUEUED_JOBS_MAX


async def test_a_client_is_as_good_as_a_url(redis: Any) -> None:
    async with Publisher(redis) as publisher:
        assert (await publisher.publish(STREAM, {"n": 1})).id.encode() == (await redis.xrange(STREAM))[0][0]
    assert await redis.ping()  # its own connections are untouched
    with pytest.raises(UsageError):
        Publisher(object())  # type: ignore[arg-type]


async def test_closed_means_closed(publisher: Publisher, redis: Any) -> None:
    last = asyncio.create_task(publisher.publish(STREAM, {"n": 1}))
    await asyncio.sleep(0)
    await publisher.aclose()
    assert (await last).id
    with pytest.raises(UsageError, match="closed"):
        await publisher.publish(STREAM, {"n": 2})
    with pytest.raises(UsageError, match="closed"):
        await publisher.evaluate("return redis.call('XADD', KEYS[1], '*', 'n', '2')", [STREAM])
    assert await texts(redis) == ["1"]


async def test_only_plain_publishes_are_measured(redis_server: Any) -> None:
    produced = Produced()
    async with CountingPublisher(redis_server.url, produced) as publisher:
        await publisher.publish(STREAM, {"n": 1})
        await publisher.publish(STREAM, {"n": 2}, key="k")
        await publisher.publish(STREAM, {"n": 3}, after_s=60)
        await publisher.publish_batch(STREAM, [{"n": "4"}], confirmation=Confirmation())
    assert produced.messages == {(STREAM, "stored"): 3, (STREAM, "later"): 1}
    assert sum(produced.buckets) == 2


async def test_a_script_is_counted_that_says_what_it_has_published(redis_server: Any) -> None:
    script, produced = "return {redis.call('XADD', KEYS[1], '*', 'n', '1'), ARGV[1]}", Produced()

    def published(reply: list[bytes]) -> Published:
        if reply[1] == b"other":
            raise IdempotencyError("the key was used", "CONFLICT")
        return Published(reply[0].decode(), replayed=reply[1] == b"same")

    async with CountingPublisher(redis_server.url, produced) as publisher:
        for known in ("new", "same", "new"):
            reply = await publisher.evaluate(script, [STREAM], known, published=published)
            assert reply[1] == known.encode()
        with pytest.raises(IdempotencyError):
            await publisher.evaluate(script, [STREAM], "other", published=published)
        with pytest.raises(PublishRefusedError):
            await publisher.evaluate("return redis.call('XADD')", [STREAM], published=published)
        await publisher.evaluate(script, [STREAM], "new")
    counted = {"stored": 2, "repeated": 1, "conflict": 1, "refused": 1}
    assert produced.messages == {(STREAM, outcome): count for outcome, count in counted.items()}
    assert not sum(produced.buckets)
