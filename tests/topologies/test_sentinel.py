"""Behind Sentinel: all works, and goes on at the new master when the old one is demoted or has crashed.

Replication is asynchronous: what a master has confirmed and not yet passed on is lost with it. All else must be
handled.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis.exceptions import RedisError

from supervisor import SyncPublisher
from supervisor.broker.blocking import blocking_client
from supervisor.errors import PublishError, PublishRefusedError
from supervisor.publisher import Publisher
from tests.support.pool import Pool
from tests.support.recording import SIMPLE, seen
from tests.support.topologies import Sentinels, bare, replicate
from tests.support.waiting import eventually
from tests.topologies.everything import CONFIG, HANDLERS, an_app_works, blocking_clients_work, everything_works
from tests.topologies.flow import Flow, flowing

#: Sentinel demotes an old master after ten seconds; by then it has been left for long.
LEFT_S = 2.0
FLOW = SIMPLE.replace('"events"', '"flow"')


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as running:
        yield running


def stored_now(sentinels: Sentinels, stream: str) -> set[str]:
    with bare(sentinels.master) as master:
        return {fields["n"] for _, fields in master.xrange(stream)}


def all_handled(pool: Pool, sentinels: Sentinels, flow: Flow) -> set[str]:
    """Wait until all that the master has is handled and settled; what is lost."""
    kept = {n for n in stored_now(sentinels, flow.stream) if n in flow.stored or n in flow.unknown}
    eventually(lambda: kept <= set(seen(pool)), 40, what=f"handled; {len(kept - set(seen(pool)))} are missing")

    def left() -> int:
        with bare(sentinels.master) as master:
            return int(master.xpending(flow.stream, "workers")["pending"])

    eventually(lambda: left() == 0, 40, what="settled")
    return set(flow.stored) - kept


@pytest.mark.long
def test_a_crashed_master_is_replaced(sentinels: Sentinels, start_pool: Callable[..., Pool]) -> None:
    pool = start_pool(FLOW, redis_url=sentinels.url)
    pids = pool.pids()
    old = sentinels.in_sync()
    with flowing(sentinels.url, "flow", "crashed") as flow:
        eventually(lambda: len(flow.stored) > 50, what="messages flow")
        replicated_s = replicate(old)
        old.kill()
        eventually(lambda: sentinels.master is not old, 40, what="another master")
        named_s = time.monotonic()
        eventually(lambda: flow.stored_after(named_s) > 50, 40, what="messages flow at the new master")
    old.start()
    lost = all_handled(pool, sentinels, flow)
    print(f"stored {len(flow.stored)}, lost {len(lost)}, gap {flow.gap_s():.2f} s, unknown {len(flow.unknown)}")
    assert flow.refused or flow.unknown, "there was a crash"
    assert all(flow.stored[n] > replicated_s for n in lost), "only what was not yet replicated"
    assert pool.pids() == pids, "no worker ended for it"
    eventually(lambda: pool.status()["state"] == "healthy", what="healthy again")


def test_a_pool_works_behind_sentinel(sentinels: Sentinels, start_pool: Callable[..., Pool]) -> None:
    pool = start_pool(HANDLERS, redis_url=sentinels.url, api=True, config=CONFIG)
    everything_works(pool)
    status = pool.status()
    assert status["redis"]["url"] == sentinels.url


@pytest.mark.long
def test_a_forced_failover_is_followed_at_once(sentinels: Sentinels, start_pool: Callable[..., Pool]) -> None:
    pool = start_pool(FLOW, redis_url=sentinels.url)
    pids = pool.pids()
    old = sentinels.in_sync()
    with flowing(sentinels.url, "flow", "forced") as flow:
        eventually(lambda: len(flow.stored) > 50, what="messages flow")
        asked_s = time.monotonic()
        new = sentinels.fail_over()
        named_s = time.monotonic()
        eventually(lambda: flow.stored_after(named_s + LEFT_S) > 50, 40, what="messages flow at the new master")
    assert new.port != old.port
    lost = all_handled(pool, sentinels, flow)
    late = [n for n in lost if flow.stored[n] > named_s + LEFT_S]
    print(
        f"named after {named_s - asked_s:.2f} s; stored {len(flow.stored)}, lost {len(lost)}, gap {flow.gap_s():.2f} s"
    )
    assert not late, "the old master, which is demoted much later, was left at once"
    assert pool.pids() == pids


async def test_the_consumers_of_an_app(sentinels: Sentinels) -> None:
    await an_app_works(sentinels.url)


async def test_blocking_clients(sentinels: Sentinels) -> None:
    await blocking_clients_work(sentinels.url)


def test_a_closed_publisher_leaves_no_task(sentinels: Sentinels) -> None:
    """What watches the sentinels ends too, with its connection to them."""
    with SyncPublisher(sentinels.url) as publisher:
        publisher.publish("closed", {"n": "1"})
        loop = publisher._loop
        assert loop is not None
    assert loop.is_closed() and not asyncio.all_tasks(loop)


@pytest.mark.long
def test_blocking_clients_follow_a_failover(sentinels: Sentinels) -> None:
    sentinels.in_sync()
    with SyncPublisher(sentinels.url) as publisher, blocking_client(sentinels.url) as redis:
        publisher.publish("moves", {"n": "before"})
        assert redis.xlen("moves") == 1
        sentinels.in_sync()
        sentinels.fail_over()

        def writes(write: Callable[[], Any]) -> bool:
            try:
                write()
            except (PublishError, RedisError):
                return False
            return True

        eventually(lambda: writes(lambda: publisher.publish("moves", {"n": "after"})), what="the publisher follows")
        eventually(lambda: writes(lambda: redis.xadd("moves", {"n": "after"})), what="the client follows")


async def test_sentinels_have_a_password_of_their_own(sentinels: Sentinels) -> None:
    for sentinel in sentinels.sentinels:
        with bare(sentinel) as admin:
            admin.execute_command("ACL", "SETUSER", "asking", "on", ">pass@word", "+sentinel|get-master-addr-by-name")
            admin.execute_command("ACL", "SETUSER", "default", "-sentinel")
    url = f"{sentinels.url}/0?sentinel_username=asking&sentinel_password=pass%40word"
    async with Publisher(url) as publisher:
        assert (await publisher.publish("asked", {"n": "1"})).id
    async with Publisher(sentinels.url) as publisher:
        with pytest.raises(PublishRefusedError, match="no permissions to run the 'sentinel"):
            await publisher.publish("asked", {"n": "2"})
    async with Publisher(url.replace("%40", "")) as publisher:
        with pytest.raises(PublishRefusedError, match="invalid username-password"):
            await publisher.publish("asked", {"n": "3"})
