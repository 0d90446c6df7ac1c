"""Takes over what consumers without an owner still hold, and deletes them.

1. Slots that this pool no longer has: it was started again with fewer workers, or one could not hand over.
2. Pools whose lease has run out: their host is gone. One keeper at a time does it, elected by a key that
   expires, and never before it has seen Redis for a whole lease itself: after an outage every pool needs
   that time to renew.
3. Consumers of other programs, where the operator has said when theirs is given up (`foreign_after_s`). There is
   no lease to prove anything, so this goes by time alone, and by the careful one: how long the message has waited
   since it was last touched (not the consumer's idle time, which before Redis 7.2 grows while it waits), looked at
   again in the step that claims it; and only once this keeper has itself seen Redis for as long, since a
   server's downtime counts as idle time. Deleting one that lives after all costs nothing: it holds nothing, and
   its next read makes it anew.

It does the same in a group's stream of replayed copies while there is one, and pokes workers to read it.

Claims count no delivery (JUSTID), and a consumer is deleted only by a script that finds nothing pending.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from supervisor.broker.scripts import DELETE_CONSUMER, NOW, TAKE_OVER
from supervisor.core.reclaim import foreign, owner_of, ownerless
from supervisor.keeper.lease import LEASE_MS, RENEW_S, elected
from supervisor.keeper.redis_continuity import RedisContinuity
from supervisor.keeper.replays import Replays
from supervisor.keys import POOLS_KEY, consumer_name, host_key, isolated_key, reaper_key, replay_key
from supervisor.shared_state import SLOTS_MAX, HeaderField, SlotField

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from supervisor.shared_state import SharedState

_PAGE = 200
#: A day.
FORGOTTEN_AFTER_MS = 86_400_000


class Reaper:
    """What one keeper does for its pool's groups."""

    def __init__(
        self, redis: Redis, pool: str, token: str, shared: SharedState, groups: Sequence[tuple[str, str]], log: Any
    ) -> None:
        """`groups` are the (stream, group) of this pool's handlers: only they have someone who can take over."""
        self._redis = redis
        self._pool = pool
        self._token = token
        self._shared = shared
        self._groups = groups
        self._log = log
        self._copies = Replays(redis, pool, shared)
        self._sight = RedisContinuity()
        self._next = 0
        #: Messages that a consumer of another program holds for longer are taken; 0: never.
        self.foreign_after_s = 0.0

    def lost_sight(self) -> None:
        """Redis was away: nobody is taken for dead before all had the time to say that they live."""
        self._sight.lost()

    async def look(self) -> None:
        """One look at all groups. Raises redis-py's errors.

        It takes no longer than leaves time to renew the lease: what is taken over by then stays so, and the
        next look goes on.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RENEW_S):
                await self._look()

    async def _look(self) -> None:
        await self._sight.look(self._redis)
        heirs = self._heirs()
        if not heirs:
            return
        pools: Any = await self._redis.hkeys(POOLS_KEY)
        known = {name.decode() for name in pools}
        dead = await self._without_lease(known) if self._sight.unbroken_s >= LEASE_MS / 1000 else set()
        replayed = [(stream, group) for stream, group in self._groups if await self._copies.exist(stream, group)]
        pairs = [*self._groups, *((replay_key(stream, group), group) for stream, group in replayed)]
        for stream, group in pairs:
            try:
                rows: Any = await self._redis.xinfo_consumers(stream, group)
            except ResponseError:  # the stream or the group is not there: the workers make it
                continue
            names = _names(rows)
            if ownerless(names, self._pool, self._held_slots(), dead):
                # Looked at again after the time is known: what an owner gets from then on, it gets because it is back.
                since_ms = await self._redis.eval(NOW.text, 1, stream)
                still = await self._without_lease(dead)
                ours = ownerless(names, self._pool, self._held_slots(), still)
                await self._take_all(stream, group, ours, heirs, since_ms=since_ms)
            if 0 < self.foreign_after_s <= self._sight.unbroken_s:
                others = await self._strangers(foreign(names, self._pool, known))
                await self._take_all(stream, group, others, heirs, idle_ms=int(self.foreign_after_s * 1000))
        for stream, group in replayed:
            await self._copies.poke_readers(stream, group, heirs)
        await self._forget(dead, pairs)

    async def _take_all(
        self, stream: str, group: str, names: list[str], heirs: list[int], *, idle_ms: int = 0, since_ms: int = 0
    ) -> None:
        if names and await elected(self._redis, reaper_key(stream, group), self._token):
            for name in names:
                await self._take(stream, group, name, heirs, idle_ms, since_ms)

    async def _take(self, stream: str, group: str, name: str, heirs: list[int], idle_ms: int, since_ms: int) -> None:
        """`idle_ms`: of a consumer that may be alive, only what is left alone for as long."""
        taken, found, named = 0, 1, name.encode(errors="surrogateescape")
        while found:
            heir = heirs[self._next % len(heirs)]
            self._next += 1
            words = (group, named, consumer_name(self._pool, heir), _PAGE, idle_ms, since_ms)
            handed: Any = 1  # also when the answer was lost: what has changed hands is seen by nobody else
            try:
                found, handed = await self._redis.eval(TAKE_OVER.text, 1, stream, *words)
            finally:
                self._shared.slot(heir).add(SlotField.RESCAN_PENDING, bool(handed))
            taken += handed
        inactive = (idle_ms,) if idle_ms else ()
        gone: Any = await self._redis.eval(DELETE_CONSUMER.text, 1, stream, group, named, *inactive)
        if gone >= 0:
            await self._redis.hdel(isolated_key(stream, group), named)
        if taken or gone >= 0:
            about = {
                "consumer": named.decode(errors="backslashreplace"),
                "stream": stream,
                "group": group,
                "messages": taken,
            }
            self._log.info("took over", **about, foreign=True if idle_ms else None)

    async def _without_lease(self, pools: set[str]) -> set[str]:
        """Those of the pools that are not this one and hold no lease."""
        others = list(pools - {self._pool})
        pipe = self._redis.pipeline(transaction=False)
        for name in others:
            pipe.exists(host_key(name))
        return {name for name, held in zip(others, await pipe.execute(), strict=True) if not held}

    async def _strangers(self, names: list[str]) -> list[str]:
        """Without those of a pool that lives, but has not said so in POOLS_KEY yet."""
        owners = {name: owner[0] for name in names if (owner := owner_of(name)) is not None}
        leaseless = await self._without_lease(set(owners.values()))
        return [name for name in names if name not in owners or owners[name] in leaseless]

    async def _forget(self, dead: set[str], pairs: Sequence[tuple[str, str]]) -> None:
        """Pools that have left nothing in any of these groups need not be looked for again."""
        names = list(dead)
        seen: list[Any] = await self._redis.hmget(POOLS_KEY, names) if names else []
        # Long enough for the keepers of other groups, which have to find it here too.
        old_ms = int(time.time() * 1000) - FORGOTTEN_AFTER_MS
        old = {name for name, ms in zip(names, seen, strict=True) if ms is not None and int(ms) < old_ms}
        left: set[str] = set()
        for stream, group in pairs if old else ():
            try:
                rows: Any = await self._redis.xinfo_consumers(stream, group)
            except ResponseError:
                continue
            left |= {name.rpartition(":")[0] for name in _names(rows)}
        if gone := old - left:
            await self._redis.hdel(POOLS_KEY, *gone)

    def _heirs(self) -> list[int]:
        return [slot for slot in self._slots() if self._shared.slot(slot).get(SlotField.READY_NS)]

    def _slots(self) -> range:
        return range(self._shared.get(HeaderField.WORKERS))

    def _held_slots(self) -> set[int]:
        """Wanted ones, and those that still have a process: it hands over by itself."""
        leaving = {slot for slot in range(SLOTS_MAX) if self._shared.slot(slot).get(SlotField.PID)}
        return leaving | set(self._slots())


def _names(rows: list[dict[str, Any]]) -> list[str]:
    """As text; the bytes of a name that is none are kept."""
    return [row["name"].decode(errors="surrogateescape") for row in rows]
