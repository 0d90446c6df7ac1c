"""Reaps consumers without an owner: claims what they hold for living consumers and deletes them.

1. Slots that this pool no longer has: it was restarted with fewer workers, or a slot could not hand over.
2. Pools whose lease has run out: their host is gone. One keeper at a time reaps, elected by a key that expires, and
   only after it has itself seen Redis for a whole lease: after an outage every pool needs that time to renew.
3. Consumers of other programs, if the operator has set a time for them (`foreign_after_s`). No lease proves anything
   there, so only time decides, and carefully: the time since the message was last touched (not the consumer's idle
   time, which before Redis 7.2 grows while it waits), checked again in the step that claims it, and only once this
   keeper has itself seen Redis for as long, since a server's downtime counts as idle time. Deleting a consumer that
   lives after all costs nothing: it holds nothing, and its next read creates it again.
4. The consumers that hold what waits for its turn or rate, where the handler no longer has such a limit.

The same is done in a group's replay stream.

Claims count no delivery (JUSTID), and a consumer is deleted only by a script that finds nothing pending.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from supervisor.broker.scripts import CLAIM_PENDING, DELETE_CONSUMER, NOW
from supervisor.core.reclaim import foreign, owner_of, ownerless
from supervisor.handling.loader import HandlerSpec
from supervisor.keeper.duty import duty
from supervisor.keeper.lease import LEASE_MS, RENEW_S, elected
from supervisor.keeper.redis_continuity import RedisContinuity
from supervisor.keys import (
    POOLS_KEY,
    RATES_CONSUMER,
    TURNS_CONSUMER,
    WAITING_CONSUMERS,
    consumer_name,
    host_key,
    isolated_key,
    reaper_key,
    replay_key,
)
from supervisor.log import FaultLog
from supervisor.shared_state import SLOTS_MAX, HeaderField, SharedState, SlotField
from supervisor.text import decoded

_PAGE = 200
#: One day.
FORGOTTEN_AFTER_MS = 86_400_000


class Reaper:
    """Reaps in the groups of one pool's handlers: only there the pool has consumers that can take messages."""

    def __init__(
        self,
        redis: Redis,
        pool: str,
        token: str,
        shared: SharedState,
        specs: Sequence[HandlerSpec],
        faults: FaultLog,
        *,
        foreign_after_s: float = 0.0,
    ) -> None:
        """`specs` are this pool's handlers. `foreign_after_s`: see the module, 3; 0: never."""
        self._redis = redis
        self._pool = pool
        self._token = token
        self._shared = shared
        self._groups = [(spec.stream, spec.group) for spec in specs]
        self._faults = faults
        self._continuity = RedisContinuity()
        self._next = 0
        self._foreign_after_s = foreign_after_s
        #: The (stream, group, consumer) whose messages wait for turns or rates. Elsewhere they no longer need to: a
        #: handler has lost its `key` or `rate`.
        self._waiting = {waiting for spec in specs for waiting in _waiting_consumers(spec)}

    def note_outage(self) -> None:
        """Note that Redis was away: every pool gets the time to renew its lease before it counts as dead."""
        self._continuity.lost()

    async def look(self) -> None:
        """Look at all groups once. Raises redis-py's errors.

        It ends in time to renew the lease: what was claimed by then stays claimed, and the next look goes on.
        """
        limit = asyncio.timeout(RENEW_S)
        try:
            async with limit:
                await self._look()
        except TimeoutError:
            if not limit.expired():  # it was Redis that did not answer
                raise

    async def _look(self) -> None:
        pools = None
        with duty(self._faults, "reap"):
            await self._continuity.look(self._redis)
            if receivers := self._receivers():
                pools = await self._pools()
        if pools is None:  # no worker can take messages, or Redis has refused to tell
            return
        known, dead = pools
        pairs = [*self._groups, *((replay_key(stream, group), group) for stream, group in self._groups)]
        for stream, group in pairs:
            with duty(self._faults, "reap", stream, group):
                await self._reap_group(stream, group, receivers, known=known, dead=dead)
        with duty(self._faults, "forget dead pools"):
            await self._forget(dead, pairs)

    async def _pools(self) -> tuple[set[str], set[str]]:
        """Return the pools that are known, and those of them that count as dead."""
        reply: Any = await self._redis.hkeys(POOLS_KEY)
        known = {name.decode() for name in reply}
        return known, await self._without_lease(known) if self._continuity.unbroken_s >= LEASE_MS / 1000 else set()

    async def _reap_group(
        self, stream: str, group: str, receivers: list[int], *, known: set[str], dead: set[str]
    ) -> None:
        try:
            rows: Any = await self._redis.xinfo_consumers(stream, group)
        except ResponseError:  # the stream or the group is missing; the workers create it
            return
        names = _names(rows)
        if ownerless(names, self._pool, self._held_slots(), dead):
            # Leases are checked again once the time is known: an owner that receives messages after that is back.
            since_ms = await self._redis.eval(NOW.text, 1, stream)
            still_dead = await self._without_lease(dead)
            ours = ownerless(names, self._pool, self._held_slots(), still_dead)
            await self._reap_all(stream, group, ours, receivers, since_ms=since_ms)
        free = [name for name in WAITING_CONSUMERS if name in names and (stream, group, name) not in self._waiting]
        await self._reap_all(stream, group, free, receivers)
        names = [name for name in names if name not in WAITING_CONSUMERS]
        if 0 < self._foreign_after_s <= self._continuity.unbroken_s:
            others = await self._without_live_pools(foreign(names, self._pool, known))
            await self._reap_all(stream, group, others, receivers, idle_ms=int(self._foreign_after_s * 1000))

    async def _reap_all(
        self, stream: str, group: str, names: list[str], receivers: list[int], *, idle_ms: int = 0, since_ms: int = 0
    ) -> None:
        if names and await elected(self._redis, reaper_key(stream, group), self._token):
            for name in names:
                await self._reap(stream, group, name, receivers, idle_ms, since_ms)

    async def _reap(
        self, stream: str, group: str, name: str, receivers: list[int], idle_ms: int, since_ms: int
    ) -> None:
        """Claim what the consumer holds; with `idle_ms` only what was idle for that long, as the owner may be alive."""
        claimed, found, consumer = 0, 1, name.encode(errors="surrogateescape")
        while found:
            receiver = receivers[self._next % len(receivers)]
            self._next += 1
            arguments = (group, consumer, consumer_name(self._pool, receiver), _PAGE, idle_ms, since_ms)
            count: Any = 1  # also when the answer was lost: no other keeper would notice what was claimed
            try:
                found, count = await self._redis.eval(CLAIM_PENDING.text, 1, stream, *arguments)
            finally:
                self._shared.slot(receiver).add(SlotField.RESCAN_PENDING, bool(count))
            field = SlotField.RECLAIMED_IDLE if idle_ms else SlotField.RECLAIMED_HOST
            self._shared.slot(receiver).add(field, count)
            claimed += count
        inactive = (idle_ms,) if idle_ms else ()
        deleted: Any = await self._redis.eval(DELETE_CONSUMER.text, 1, stream, group, consumer, *inactive)
        if deleted >= 0:
            await self._redis.hdel(isolated_key(stream, group), consumer)
        if claimed or deleted >= 0:
            self._faults.log.info(
                "consumer reaped",
                consumer=decoded(consumer),
                stream=stream,
                group=group,
                messages=claimed,
                foreign=True if idle_ms else None,
            )

    async def _without_lease(self, pools: set[str]) -> set[str]:
        """Return the other pools that hold no lease."""
        others = list(pools - {self._pool})
        pipe = self._redis.pipeline(transaction=False)
        for name in others:
            pipe.exists(host_key(name))
        return {name for name, held in zip(others, await pipe.execute(), strict=True) if not held}

    async def _without_live_pools(self, names: list[str]) -> list[str]:
        """Drop the consumers of a pool that lives but has not written itself to POOLS_KEY yet."""
        owners = {name: owner[0] for name in names if (owner := owner_of(name)) is not None}
        leaseless = await self._without_lease(set(owners.values()))
        return [name for name in names if name not in owners or owners[name] in leaseless]

    async def _forget(self, dead: set[str], pairs: Sequence[tuple[str, str]]) -> None:
        """Remove dead pools that have left nothing in any of these groups from POOLS_KEY."""
        names = list(dead)
        seen: list[Any] = await self._redis.hmget(POOLS_KEY, names) if names else []
        # Long enough for the keepers of other groups, which need to find the pool here too.
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

    def _receivers(self) -> list[int]:
        """Return the slots whose workers can take messages."""
        return [slot for slot in self._slots() if self._shared.slot(slot).get(SlotField.READY_NS)]

    def _slots(self) -> range:
        return range(self._shared.get(HeaderField.WORKERS))

    def _held_slots(self) -> set[int]:
        """Return the wanted slots and those that still have a process, which hands over by itself."""
        leaving = {slot for slot in range(SLOTS_MAX) if self._shared.slot(slot).get(SlotField.PID)}
        return leaving | set(self._slots())


def _waiting_consumers(spec: HandlerSpec) -> Iterator[tuple[str, str, str]]:
    """Yield the (stream, group, consumer) that hold what waits for the handler's limits."""
    for stream in (spec.stream, replay_key(spec.stream, spec.group)):
        if spec.options.has_turns:
            yield stream, spec.group, TURNS_CONSUMER
        if spec.options.rate:
            yield stream, spec.group, RATES_CONSUMER


def _names(rows: list[dict[str, Any]]) -> list[str]:
    """Return the consumers' names as text; bytes that are not UTF-8 are kept."""
    return [row["name"].decode(errors="surrogateescape") for row in rows]
