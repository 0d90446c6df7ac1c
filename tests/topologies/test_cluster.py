"""A cluster: streams on different nodes work; moving slots and dying nodes lose no message."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor import Emit, Message, Next, Retry, handler
from supervisor.broker.connect import client
from supervisor.broker.entry_lookup import collect
from supervisor.broker.schedules import publish_ticks
from supervisor.core.schedule import Schedule
from supervisor.errors import EXIT_REDIS, EXIT_USAGE
from supervisor.publisher import Publisher
from supervisor.shared_state import SlotField
from tests.cli.run import spawn
from tests.redis.moving import moving
from tests.redis.test_cancelling import TURNS_MAX, cancelled
from tests.redis.worker import working
from tests.support.pool import Pool
from tests.support.recording import RECORD, seen
from tests.support.servers import RedisServer
from tests.support.topologies import Cluster, bare, replicate
from tests.support.waiting import eventually, eventually_async
from tests.topologies.everything import CONFIG, HANDLERS, STREAMS, an_app_works, blocking_clients_work, everything_works
from tests.topologies.flow import Flow, flowing
from tests.topologies.rights import CLUSTER, COMMANDS, EXAMPLE, KEYS, OPTIONAL, PASSWORD, grant, refusals


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        yield running


def test_a_pool_works_in_a_cluster(cluster: Cluster, start_pool: Callable[..., Pool]) -> None:
    assert cluster.owner(STREAMS[0]) is not cluster.owner(STREAMS[1])
    with contextlib.ExitStack() as stack:
        admins = [stack.enter_context(bare(node)) for node in cluster.servers]
        for admin in admins:
            grant(admin, "reset", "on", f">{PASSWORD}", KEYS, COMMANDS, OPTIONAL, CLUSTER, EXAMPLE)
        pool = start_pool(
            HANDLERS, redis_url=cluster.url.replace("://", f"://pool:{PASSWORD}@"), api=True, config=CONFIG
        )
        everything_works(pool)
        assert pool.stop() == 0
        assert not [line for admin in admins for line in refusals(admin)]


async def test_the_consumers_of_an_app(cluster: Cluster) -> None:
    await an_app_works(cluster.url)


async def test_blocking_clients(cluster: Cluster) -> None:
    await blocking_clients_work(cluster.url)


async def test_a_command_is_cancelled_at_any_turn_of_the_loop(cluster: Cluster) -> None:
    async with client(cluster.url, timeout_s=60) as store:
        await store.ping()
        for turns in range(TURNS_MAX):
            assert await cancelled(store, turns), turns
        assert await store.ping() is True


async def test_what_a_handler_returns_reaches_every_slot_once(cluster: Cluster) -> None:
    """The second attempt returns the same messages: what another node has got already is not published again."""
    source = "events"
    elsewhere = next(cluster.stream_of(node) for node in cluster.servers if node is not cluster.owner(source))
    beside = f"out:{{{source}}}"

    async def fails_once(message: Message, call_next: Next) -> None:
        await call_next(message)
        if message.deliveries == 1:
            raise Retry(after_s=0)

    @handler(source, group="emits", middleware=[fails_once])
    async def emits(message: Message) -> list[Emit]:
        return [Emit(name, {"attempt": message.deliveries}) for name in (elsewhere, beside)]

    with cluster.client() as redis:
        for name in (source, elsewhere, beside):
            redis.delete(name)
        redis.xadd(source, {"n": 1})
        async with working(cluster.url, emits) as worker:
            await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 1)
        found = {name: [fields for _, fields in redis.xrange(name)] for name in (elsewhere, beside)}
        assert found == {elsewhere: [{"attempt": "1"}], beside: [{"attempt": "2"}]}
        assert redis.xpending(source, "emits")["pending"] == 0


async def test_turns_rates_later_and_schedules_stay_in_the_slot_of_their_stream(cluster: Cluster) -> None:
    source = "limited"
    elsewhere = next(cluster.stream_of(node) for node in cluster.servers if node is not cluster.owner(source))
    beside = f"out:{{{source}}}"
    order: dict[str, list[int]] = {"a": [], "b": []}
    starts: list[float] = []

    @handler(source, group="turns", key=lambda message: message.fields["k"])
    async def in_order(message: Message) -> Emit:
        order[message.fields["k"]].append(int(message.fields["n"]))
        await asyncio.sleep(0.002)
        return Emit(beside, message.fields)

    @handler(source, group="rates", rate="50/s")
    async def at_a_rate(message: Message) -> Emit:
        starts.append(time.monotonic())
        return Emit(elsewhere, message.fields)

    schedule = Schedule("daily", source, "0 0 * * *", 0, "UTC", {"k": "a", "n": 99}, "once")
    async with (
        client(cluster.url) as redis,
        moving(redis, cluster.url, source),
        Publisher(cluster.url) as publisher,
        working(cluster.url, in_order, at_a_rate) as worker,
    ):
        for n in range(20):
            await publisher.publish(source, {"k": "ab"[n % 2], "n": n}, after_s=0.1 + n / 1000)
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 40)
        await publish_ticks(redis, schedule, [86_400_000])
        await eventually_async(lambda: worker.shared.get(SlotField.DONE) == 42)
        found, groups = await collect(redis, source, (await redis.xrevrange(source, count=1))[0][0].decode())
    assert order == {"a": [*range(0, 20, 2), 99], "b": list(range(1, 20, 2))}
    # Five are the burst. The first one may have begun late, by the clock of this process.
    assert starts[19] - starts[0] > 0.2
    assert found.origin is not None and found.origin.schedule == "daily"
    emitted = {facts.group: [stream for stream, _ in facts.emitted] for facts in groups}
    assert emitted == {"turns": [beside], "rates": [elsewhere]}
    for node in cluster.servers:
        with bare(node) as admin:
            names = [key for key in admin.scan_iter("supervisor:*") if f"{{{source}}}" in key]
        assert not names or node is cluster.owner(source), names


#: Two streams; of the first, each tenth message fails once, so that retries are written and scripts run too.
FLOW = (
    RECORD
    + """
    @handler(FIRST, group="workers", retry_base_s=0.05)
    async def first(message: Message) -> None:
        if message.fields["n"].endswith("0") and message.deliveries == 1:
            raise ValueError("once")
        record(message.fields["n"])

    @handler(SECOND, group="workers")
    async def second(message: Message) -> None:
        record(message.fields["n"])
"""
)


def handlers(first: str, second: str) -> str:
    """For streams of these names."""
    return FLOW.replace("FIRST", repr(first)).replace("SECOND", repr(second))


def all_handled(pool: Pool, cluster: Cluster, *flows: Flow) -> None:
    """Wait until all that was stored was handled, and nothing is left pending."""
    for flow in flows:
        stored = set(flow.stored)
        eventually(lambda stored=stored: stored <= set(seen(pool)), 40, what=f"handled: {flow.stream}")

        def left(stream: str = flow.stream) -> int:
            with cluster.client() as client:
                return int(client.xpending(stream, "workers")["pending"])

        eventually(lambda: left() == 0, 40, 0.1, what=f"settled: {flow.stream}")


@pytest.mark.long
def test_a_slot_moves_while_messages_flow(cluster: Cluster, start_pool: Callable[..., Pool]) -> None:
    here, there = cluster.servers[:2]
    stream, other = cluster.stream_of(here), cluster.stream_of(there)
    pool = start_pool(handlers(stream, other), redis_url=cluster.url)
    pids = pool.pids()
    with flowing(cluster.url, stream, "a", timeout_s=5) as first, flowing(cluster.url, other, "b") as second:
        eventually(lambda: len(first.stored) > 100, what="messages flow")
        assert cluster.move(stream, there) >= 1
        moved_s = time.monotonic()
        eventually(lambda: first.stored_after(moved_s) > 50, what="messages flow at the other node")
        assert cluster.owner(stream) is there
        published = following = None

        def half_way() -> None:
            nonlocal published, following
            following = spawn("tail", stream, "--from", "0", "--json", cwd=pool.folder, redis_url=cluster.url)
            published = spawn("publish", stream, "n=half-way", cwd=pool.folder, redis_url=cluster.url)
            eventually(lambda: time.monotonic() - max(first.stored.values()) > 1.5, what="the publisher has to wait")

        # And back, half way for a while: the stream is at the one node, the slot still the other's.
        cluster.move(stream, here, half_way)
        moved_s = time.monotonic()
        eventually(lambda: first.stored_after(moved_s) > 50, what="messages flow where they did first")
    assert published is not None and following is not None
    told, _ = published.communicate(timeout=40)
    assert published.returncode == 0 and told.strip(), "the command waited too"
    first.stored["half-way"] = moved_s
    assert not first.refused and not first.unknown and not second.refused and not second.unknown
    assert second.gap_s() < first.gap_s(), "another stream waits for nothing"
    all_handled(pool, cluster, first, second)
    assert pool.pids() == pids
    with cluster.client() as client:
        expected = [entry for entry, _ in client.xrange(stream)]
    shown = [json.loads(following.stdout.readline())["id"] for _ in expected]
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=30)
    assert shown == expected, "who follows the stream sees all of it, in order, once"
    print(f"gap {first.gap_s():.2f} s, {len(first.stored)} stored")


@pytest.mark.long
def test_a_node_dies_and_comes_back(cluster: Cluster, start_pool: Callable[..., Pool]) -> None:
    here, there = cluster.servers[:2]
    stream, other = cluster.stream_of(here), cluster.stream_of(there)
    pool = start_pool(handlers(stream, other), redis_url=cluster.url)
    pids = pool.pids()
    with flowing(cluster.url, stream, "c") as first, flowing(cluster.url, other, "d") as second:
        eventually(lambda: len(first.stored) > 100, what="messages flow")
        here.kill()
        killed_s = time.monotonic()
        eventually(lambda: second.stored_after(killed_s) > 200, what="the other stream flows on")
        last = list(second.stored)[-1]
        eventually(lambda: last in seen(pool), what="and is handled while the node is away")
        here.start()
        back_s = time.monotonic()
        eventually(lambda: first.stored_after(back_s) > 50, 40, what="messages flow again")
    assert first.refused or first.unknown, "the node was away"
    all_handled(pool, cluster, first, second)
    assert pool.pids() == pids, "no worker ended for it"
    print(f"gap {first.gap_s():.2f} s and {second.gap_s():.2f} s")


@pytest.fixture
def replicated() -> Iterator[Cluster]:
    with Cluster(replicas=1) as running:
        yield running


@pytest.mark.long
def test_a_replica_takes_over_from_a_dead_node(replicated: Cluster, start_pool: Callable[..., Pool]) -> None:
    here, there = replicated.servers[:2]
    stream, other = replicated.stream_of(here), replicated.stream_of(there)
    pool = start_pool(handlers(stream, other), redis_url=replicated.url)
    pids = pool.pids()
    with flowing(replicated.url, stream, "e") as first:
        eventually(lambda: len(first.stored) > 100, what="messages flow")
        replicated_s = replicate(here, f"{{{stream}}}mark")
        here.kill()
        eventually(lambda: replicated.owner(stream) is replicated.servers[-1], 40, 0.05, what="the replica took over")
        taken_s = time.monotonic()
        eventually(lambda: first.stored_after(taken_s) > 50, 40, what="messages flow again")
    with bare(replicated.servers[-1]) as replica:
        kept = {fields["n"] for _, fields in replica.xrange(stream)}
    lost = set(first.stored) - kept
    assert all(first.stored[n] > replicated_s for n in lost), "only what was not yet replicated"
    for n in lost:
        del first.stored[n]
    all_handled(pool, replicated, first)
    assert pool.pids() == pids
    print(f"gap {first.gap_s():.2f} s, lost {len(lost)}")


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("redis://{node}", "is a node of a cluster: write redis+cluster:// for redis://"),
        ("redis+cluster://{plain}", "is not a cluster: write redis:// for redis+cluster://"),
        ("redis+sentinel://{plain}/mymaster", "is not a sentinel"),
    ],
)
def test_a_url_of_the_wrong_form_is_told_the_right_one(form: str, words: str, cluster: Cluster, tmp_path: Path) -> None:
    with RedisServer(tcp=True) as plain:
        url = form.format(node=f"127.0.0.1:{cluster.servers[2].port}", plain=f"127.0.0.1:{plain.port}")
        with Pool(tmp_path / "p", HANDLERS, redis_url=url, config="redis.connect_timeout_s = 3") as pool:
            pool.start(ready=False)
            assert pool.wait() == EXIT_REDIS, pool.output
            assert words in pool.output
            told = pool.command("publish", "events", "n=1")
            assert told.returncode and words in told.stderr


def test_a_stream_whose_keys_can_not_be_in_one_slot_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    with Pool(tmp_path / "p", handlers("a}b", "events"), redis_url=cluster.url) as pool:
        pool.start(ready=False)
        assert pool.wait() == EXIT_USAGE, pool.output
        assert "stream 'a}b': in a cluster every } must end a {tag}" in pool.output
