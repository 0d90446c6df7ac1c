"""What a publisher keeps of the nodes of a cluster."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from supervisor.broker.node_router import NodeRouter
from supervisor.broker.routes import Address, SlotRange
from supervisor.errors import PublishRefusedError
from tests.support.servers import RedisServer
from tests.support.waiting import eventually_async

STREAM, LIST = "events", "list"


@pytest.fixture
def nodes() -> Iterator[list[RedisServer]]:
    """Servers that take any key: what a cluster says of them is up to the test."""
    with RedisServer(tcp=True) as first, RedisServer(tcp=True) as second:
        yield [first, second]


class Slots:
    """All slots belong to one node, which changes, or to none."""

    def __init__(self, owner: RedisServer | None) -> None:
        self.owner = owner

    async def slots(self) -> list[SlotRange]:
        elsewhere = SlotRange(0, 0, Address("127.0.0.1", 1))
        return [SlotRange(1, 16383, Address("127.0.0.1", self.owner.port))] if self.owner else [elsewhere]


@asynccontextmanager
async def routing(slots: Slots) -> AsyncIterator[NodeRouter]:
    router = NodeRouter("redis+cluster://127.0.0.1:1", timeout_s=60)
    router._cluster.slots = slots.slots  # type: ignore[union-attr, method-assign]
    try:
        yield router
    finally:
        await router.close()


async def add(router: NodeRouter) -> None:
    await router.send(STREAM, lambda node: node.command("XADD", STREAM, "*", "n", 1))


def connections(node: RedisServer) -> int:
    with node.sync() as client:
        return sum(one["name"] == "supervisor-publisher" for one in client.client_list())


async def test_what_is_under_way_on_a_node_that_leaves_is_answered_and_then_it_is_forgotten(
    nodes: list[RedisServer],
) -> None:
    slots = Slots(nodes[0])
    async with routing(slots) as router:

        async def take_two(node: Any) -> list[Any]:
            return [await node.command("BLPOP", LIST, 0) for _ in range(2)]

        await add(router)
        taking = asyncio.create_task(router.send(STREAM, take_two))
        await eventually_async(lambda: blocked(nodes[0]))
        slots.owner, router._slots = nodes[1], None
        await add(router)
        with nodes[0].sync() as client:
            client.rpush(LIST, "1")
            await eventually_async(lambda: blocked(nodes[0]) and not client.exists(LIST))
            client.rpush(LIST, "2")
        assert [value for _, value in await taking] == [b"1", b"2"]
        await eventually_async(lambda: not connections(nodes[0]), what="its connection is closed")
        assert connections(nodes[1]) == 1 and len(router._nodes) == 1


async def test_a_node_that_comes_back_is_used_again(nodes: list[RedisServer]) -> None:
    slots = Slots(nodes[0])
    async with routing(slots) as router:
        for owner in (*nodes, nodes[0]):
            slots.owner, router._slots = owner, None
            await add(router)
        with nodes[0].sync() as client:
            assert client.xlen(STREAM) == 2
    await eventually_async(lambda: not any(map(connections, nodes)), what="all are closed")


async def test_a_slot_that_gets_an_owner_later_is_found(nodes: list[RedisServer]) -> None:
    slots = Slots(None)
    async with routing(slots) as router:
        with pytest.raises(PublishRefusedError, match="no node of the cluster serves"):
            await add(router)
        slots.owner = nodes[0]
        await add(router)


def blocked(node: RedisServer) -> bool:
    with node.sync() as client:
        return bool(client.info("clients")["blocked_clients"])
