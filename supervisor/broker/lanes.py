"""The publisher's links: one to a server, or one to each node of a cluster that owns a stream.

A node that says that it does not own the slot has stored nothing: the slots are asked for again, and what
was refused is sent to the right one, for as long as a publish may take.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from redis.exceptions import RedisError

from supervisor.broker.coalesce import Coalescer
from supervisor.broker.codes import UNREACHABLE, code_of
from supervisor.broker.connect import cluster
from supervisor.broker.link import Link
from supervisor.broker.topology import owner
from supervisor.errors import PublishRefusedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from supervisor.broker.topology import Address, Slots

T = TypeVar("T")
#: Answers of a node that is not, or not yet, the right one.
_ELSEWHERE = frozenset({"MOVED", "ASK", "TRYAGAIN"})
#: A slot that is on its way is asked for so often.
_AGAIN_S = 0.02


class Lanes:
    """Belongs to one event loop."""

    def __init__(self, source: str | Redis, *, timeout_s: float) -> None:
        """`source`: a URL, or a client whose server and credentials are used. Connects later."""
        self._source = source
        self._timeout_s = timeout_s
        self._cluster = cluster(source, connect_timeout_s=timeout_s) if isinstance(source, str) else None
        self._only = None if self._cluster else self._lane(None)
        self._lanes: dict[Address, Coalescer] = {}
        #: As last told; None: to be asked for.
        self._slots: list[Slots] | None = None
        #: One asks for all that wait.
        self._asking = asyncio.Lock()

    async def send(self, key: str, publish: Callable[[Coalescer], Awaitable[T]]) -> T:
        """What `publish` gives on the lane for `key`. Raises as it does, and PublishRefusedError without a lane."""
        if self._only is not None:
            return await publish(self._only)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._timeout_s
        while True:
            lane = await self._find(key)
            try:
                return await publish(lane)
            except PublishRefusedError as error:
                if error.code in _ELSEWHERE or error.code == UNREACHABLE:
                    self._slots = None
                if error.code not in _ELSEWHERE or loop.time() + _AGAIN_S >= until_s:
                    raise
            await asyncio.sleep(_AGAIN_S)

    async def close(self) -> None:
        """Wait for what is on its way, then disconnect."""
        lanes = [self._only] if self._only else self._lanes.values()
        await asyncio.gather(*(lane.close() for lane in lanes))

    async def _find(self, key: str) -> Coalescer:
        assert self._cluster is not None
        try:
            async with asyncio.timeout(self._timeout_s), self._asking:
                self._slots = slots = self._slots or await self._cluster.slots()
            address = owner(slots, key)
        except (RedisError, OSError) as error:
            raise PublishRefusedError(
                f"Redis can't be reached: {error or 'no answer in time'}", code_of(error)
            ) from None
        if address not in self._lanes:
            self._lanes[address] = self._lane(address)
        return self._lanes[address]

    def _lane(self, at: Address | None) -> Coalescer:
        link = Link(self._source, at=at, connect_timeout_s=self._timeout_s)
        return Coalescer(link, timeout_s=self._timeout_s)
