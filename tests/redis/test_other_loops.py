"""Publishers and Redis clients where no event loop runs, and where several do."""

import asyncio
import os
import threading
from typing import Any

import pytest

from supervisor import Message, Publisher, SyncPublisher, context, handler
from supervisor.broker.blocking import blocking_client
from supervisor.errors import EncodeError, IdempotencyError, PublishRefusedError, UsageError
from supervisor.shared_state import SlotField
from tests.redis.worker import GROUP, STREAM, working
from tests.support.waiting import eventually_async


def test_a_publisher_in_one_event_loop_after_the_other(redis_server: Any) -> None:
    publisher = Publisher(redis_server.url)
    ids = [asyncio.run(publisher.publish(STREAM, {"n": n})).id for n in range(6)]
    with asyncio.Runner() as runner:
        ids += [runner.run(publisher.publish(STREAM, {"n": n})).id for n in range(6, 9)]
        runner.run(publisher.aclose())
    with blocking_client(redis_server.url) as redis:
        assert [entry.decode() for entry, _ in redis.xrange(STREAM)] == ids


async def test_another_thread_takes_up_a_publisher_meanwhile() -> None:
    publisher = Publisher("redis://127.0.0.1:1")

    class Loop:
        """A loop of another thread, whose next one begins to publish at this moment."""

        def is_closed(self) -> bool:
            publisher._of_loops[object()] = None  # type: ignore[index, assignment]
            return True

    publisher._of_loops[Loop()] = None  # type: ignore[index, assignment]
    assert publisher._router


def test_a_publisher_in_several_event_loops_at_once(redis_server: Any) -> None:
    publisher = Publisher(redis_server.url)
    ids: list[str] = []

    async def publish() -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(publisher.publish(STREAM, {"n": n})) for n in range(50)]
        ids.extend(task.result().id for task in tasks)

    threads = [threading.Thread(target=asyncio.run, args=(publish(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 200


def test_a_publish_is_answered_while_another_thread_closes_the_publisher(
    redis_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = SyncPublisher(redis_server.url)
    publisher.publish(STREAM, {"n": "before"})
    closing = threading.Thread(target=publisher.close)
    hand_over = asyncio.run_coroutine_threadsafe

    def hand_over_late(*given: Any) -> Any:
        if not closing.ident:
            closing.start()
            closing.join(0.2)  # it waits, or has closed by now
        return hand_over(*given)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", hand_over_late)
    assert publisher.publish(STREAM, {"n": "meanwhile"}).id
    closing.join()
    with pytest.raises(UsageError, match="closed"):
        publisher.publish(STREAM, {"n": "after"})


def test_threads_share_a_sync_publisher(redis_server: Any) -> None:
    ids: list[str] = []
    with SyncPublisher(redis_server.url) as publisher:

        def publish() -> None:
            ids.extend(publisher.publish(STREAM, {"n": n}).id for n in range(25))

        threads = [threading.Thread(target=publish) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(ids)) == 100
        assert len(publisher.publish_many(STREAM, [{"n": 1}, {"n": 2}])) == 2
        assert publisher.publish(STREAM, {"n": 1}, key="k").id == publisher.publish(STREAM, {"n": 1}, key="k").id
        with pytest.raises(IdempotencyError):
            publisher.publish(STREAM, {"n": 2}, key="k")
        with pytest.raises(EncodeError):
            publisher.publish(STREAM, {})
    with pytest.raises(UsageError, match="closed"):
        publisher.publish(STREAM, {"n": 1})


def test_a_sync_publisher_says_when_redis_is_away() -> None:
    with SyncPublisher("redis://127.0.0.1:1", timeout_s=2) as publisher, pytest.raises(PublishRefusedError):
        publisher.publish(STREAM, {"n": 1})


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_publishes_over_its_own_connection(redis_server: Any) -> None:
    with SyncPublisher(redis_server.url) as publisher:
        publisher.publish(STREAM, {"n": 0})
        child = os.fork()
        if not child:
            os._exit(0 if publisher.publish(STREAM, {"n": 1}).id else 1)
        assert os.waitpid(child, 0)[1] == 0
        publisher.publish(STREAM, {"n": 2})
    with blocking_client(redis_server.url) as redis:
        assert redis.xlen(STREAM) == 3


async def test_a_plain_handler_gets_blocking_clients(redis: Any, redis_url: str) -> None:
    @handler(STREAM, group=GROUP)
    def plain(message: Message) -> None:
        context().redis.set("seen", message.fields["n"])
        context().publisher.publish("next", {"n": message.fields["n"]})

    @handler(STREAM, group="others")
    async def waits(message: Message) -> None:
        await context().redis.set("awaited", message.fields["n"])
        await context().publisher.publish("awaited next", message.fields)
        await asyncio.to_thread(lambda: context().redis.set("from a thread", 1))

    await redis.xadd(STREAM, {"n": 7})
    async with working(redis_url, plain, waits) as worker:
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 2)
    assert [await redis.get(key) for key in ("seen", "awaited", "from a thread")] == [b"7", b"7", b"1"]
    assert [fields for _, fields in await redis.xrange("next")] == [{b"n": b"7"}]
    assert [fields for _, fields in await redis.xrange("awaited next")] == [{b"n": b"7"}]
