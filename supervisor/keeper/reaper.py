"""Takes over what consumers without an owner still hold, and deletes them.

1. Slots that this pool no longer has: it was started again with fewer workers, or one could not hand over.
2. Pools whose lease has run out: their host is gone. One keeper at a time does it, elected by a key that
   expires, and never before it has seen Redis for a whole lease itself: after an outage every pool needs
   that time to renew.

Claims count no delivery (JUSTID), and a consumer is deleted only by a script that finds nothing pending.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from supervisor.board import SLOTS_MAX, Head, Word
from supervisor.broker.scripts import DELETE_CONSUMER
from supervisor.core.reclaim import ownerless
from supervisor.keeper.lease import LEASE_MS, RENEW_S, elected
from supervisor.names import POOLS_KEY, consumer_name, host_key, reaper_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from supervisor.board import Board

_PAGE = 200
#: A day.
FORGOTTEN_AFTER_MS = 86_400_000


class Reaper:
    """What one keeper does for its pool's groups."""

    def __init__(
        self, redis: Redis, pool: str, token: str, board: Board, groups: Sequence[tuple[str, str]], log: Any
    ) -> None:
        """`groups` are the (stream, group) of this pool's handlers: only they have someone who can take over."""
        self._redis = redis
        self._pool = pool
        self._token = token
        self._board = board
        self._groups = groups
        self._log = log
        self._seen_since_s = time.monotonic()
        self._next = 0

    def lost_sight(self) -> None:
        """Redis was away: nobody is taken for dead before all had the time to say that they live."""
        self._seen_since_s = time.monotonic()

    async def look(self) -> None:
        """One look at all groups. Raises redis-py's errors.

        It takes no longer than leaves time to renew the lease: what is taken over by then stays so, and the
        next look goes on.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RENEW_S):
                await self._look()

    async def _look(self) -> None:
        await self._redis.hset(POOLS_KEY, self._pool, int(time.time() * 1000))
        heirs = self._heirs()
        if not heirs:
            return
        dead = await self._dead_pools()
        for stream, group in self._groups:
            await self._look_at(stream, group, heirs, dead)
        await self._forget(dead)

    async def _look_at(self, stream: str, group: str, heirs: list[int], dead: set[str]) -> None:
        try:
            rows: Any = await self._redis.xinfo_consumers(stream, group)
        except ResponseError:  # the stream or the group is not there: the workers make it
            return
        consumers = [row["name"].decode() for row in rows]
        names = ownerless(consumers, self._pool, self._held_slots(), dead)
        if names and await elected(self._redis, reaper_key(stream, group), self._token):
            for name in names:
                await self._take(stream, group, name, heirs)

    async def _take(self, stream: str, group: str, name: str, heirs: list[int]) -> None:
        taken, start = 0, "-"
        while rows := await self._redis.xpending_range(stream, group, start, "+", _PAGE, consumername=name):
            heir = heirs[self._next % len(heirs)]
            self._next += 1
            ids: list[Any] = [row["message_id"] for row in rows]
            try:
                await self._redis.xclaim(
                    stream, group, consumer_name(self._pool, heir), min_idle_time=0, message_ids=ids, justid=True
                )
            finally:  # also when the answer was lost: what has changed hands is seen by nobody else
                self._board.slot(heir).add(Word.SWEEP, 1)
            taken += len(ids)
            start = "(" + ids[-1].decode()
        await self._redis.eval(DELETE_CONSUMER.text, 1, stream, group, name)
        self._log.info("took over", consumer=name, stream=stream, group=group, messages=taken)

    async def _dead_pools(self) -> set[str]:
        if time.monotonic() - self._seen_since_s < LEASE_MS / 1000:
            return set()
        known: Any = await self._redis.hkeys(POOLS_KEY)
        others = {name.decode() for name in known} - {self._pool}
        return {name for name in others if not await self._redis.exists(host_key(name))}

    async def _forget(self, dead: set[str]) -> None:
        """Pools that have left nothing in any of these groups need not be looked for again."""
        left: set[str] = set()
        for stream, group in self._groups if dead else ():
            try:
                rows: Any = await self._redis.xinfo_consumers(stream, group)
            except ResponseError:
                continue
            left |= {row["name"].decode().rpartition(":")[0] for row in rows}
        # Long enough for the keepers of other groups, which have to find it here too.
        old_ms = int(time.time() * 1000) - FORGOTTEN_AFTER_MS
        for name in dead - left:
            seen = await self._redis.hget(POOLS_KEY, name)
            if seen is not None and int(seen) < old_ms:
                await self._redis.hdel(POOLS_KEY, name)

    def _heirs(self) -> list[int]:
        return [slot for slot in self._slots() if self._board.slot(slot).get(Word.READY_NS)]

    def _slots(self) -> range:
        return range(self._board.get(Head.WORKERS))

    def _held_slots(self) -> set[int]:
        """Wanted ones, and those that still have a process: it hands over by itself."""
        leaving = {slot for slot in range(SLOTS_MAX) if self._board.slot(slot).get(Word.PID)}
        return leaving | set(self._slots())
