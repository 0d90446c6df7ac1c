"""Routes each publish to the server of its stream: one server, or in a cluster the node that owns the stream's slot.

A node that answers that it does not own the slot has stored nothing: the slots are looked up again and the
publish is repeated on the right node until its time is up.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis

from supervisor.broker.connect import cluster
from supervisor.broker.pipeline_connection import PipelineConnection
from supervisor.broker.publish_pipeline import PublishPipeline
from supervisor.broker.redis_errors import REDIS_FAULTS, UNREACHABLE, code_of
from supervisor.broker.routes import Address, SlotRange, slot_owner
from supervisor.errors import PublishRefusedError

T = TypeVar("T")
#: Answers of a node that is not, or not yet, the owner of the slot.
_WRONG_NODE = frozenset({"MOVED", "ASK", "TRYAGAIN"})
#: Pause before the next try while a slot migrates.
_RETRY_S = 0.02
#: A lookup that takes no longer has cost its publish no time.
_NOTHING_S = 0.001


class NodeRouter:
    """Holds one pipeline for each node; belongs to one event loop."""

    def __init__(self, source: str | Redis, *, timeout_s: float, connect_timeout_s: float | None = None) -> None:
        """Prepare; the first publish connects. `source`: a URL, or a client whose server and credentials are used."""
        self._source = source
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s or timeout_s
        self._cluster = cluster(source, connect_timeout_s=self._connect_timeout_s) if isinstance(source, str) else None
        self._only = None if self._cluster else self._pipeline(None)
        self._nodes: dict[Address, PublishPipeline] = {}
        #: How many publishes use a node.
        self._uses: Counter[PublishPipeline] = Counter()
        #: Nodes that have left while they were used.
        self._left: set[PublishPipeline] = set()
        self._closing: set[asyncio.Task[None]] = set()
        #: The last answer of the cluster; None: to be looked up.
        self._slots: list[SlotRange] | None = None
        #: Lets one task look the slots up for all that wait.
        self._lookup = asyncio.Lock()

    async def send(
        self, key: str, publish: Callable[[PublishPipeline], Awaitable[T]], *, began_s: float | None = None
    ) -> T:
        """Return the result of `publish` on the server of `key`.

        The time limit counts from `began_s`, by the loop's clock, or from now on. Raises what `publish` raises, and
        PublishRefusedError when no server is found.
        """
        if self._only is not None and began_s is None:
            return await publish(self._only)
        loop = asyncio.get_running_loop()
        began_s = loop.time() if began_s is None else began_s
        if self._only is not None:
            return await publish(_after(self._only, loop.time() - began_s))
        deadline_s = began_s + self._timeout_s
        while True:
            node = await self._find(key, deadline_s)
            self._uses[node] += 1
            try:
                return await publish(_after(node, loop.time() - began_s))
            except PublishRefusedError as error:
                if error.code in _WRONG_NODE or error.code == UNREACHABLE:
                    self._slots = None
                if error.code not in _WRONG_NODE or loop.time() + _RETRY_S >= deadline_s:
                    raise
            finally:
                self._uses[node] -= 1
                self._close_left()
            await asyncio.sleep(_RETRY_S)

    async def close(self) -> None:
        """Wait for the publishes that are under way, then disconnect."""
        nodes = [self._only] if self._only else [*self._nodes.values(), *self._left]
        self._left.clear()
        await asyncio.gather(*(node.close() for node in nodes), *self._closing)

    async def _find(self, key: str, deadline_s: float) -> PublishPipeline:
        assert self._cluster is not None
        try:
            async with asyncio.timeout_at(deadline_s), self._lookup:
                slots = self._slots
                if not slots:
                    self._slots = slots = await self._cluster.slots()
                    self._forget_all_but({one.owner for one in slots})
            address = slot_owner(slots, key)
        except REDIS_FAULTS as error:
            self._slots = None  # a slot that has no owner may get one
            raise PublishRefusedError(
                f"Redis can't be reached: {error or 'no answer in time'}", code_of(error)
            ) from error
        if address not in self._nodes:
            self._nodes[address] = self._pipeline(address)
        return self._nodes[address]

    def _forget_all_but(self, owners: set[Address]) -> None:
        """Forget the nodes that no longer own a slot."""
        self._left.update(self._nodes.pop(address) for address in self._nodes.keys() - owners)
        self._close_left()

    def _close_left(self) -> None:
        """Close the connections to nodes that have left; a publish that uses one goes on, and may send more to it."""
        for node in [node for node in self._left if not self._uses[node]]:
            self._left.remove(node)
            del self._uses[node]
            task = asyncio.create_task(node.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _pipeline(self, at: Address | None) -> PublishPipeline:
        connection = PipelineConnection(self._source, at=at, connect_timeout_s=self._connect_timeout_s)
        return PublishPipeline(connection, timeout_s=self._timeout_s)


def _after(node: PublishPipeline, spent_s: float) -> PublishPipeline:
    return node.after(spent_s) if spent_s > _NOTHING_S else node
