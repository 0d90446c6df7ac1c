"""Makes workers read the copies of replayed messages whose entry was trimmed.

Workers look for copies only when they start and when they are poked, so an idle pool pays for nothing but this look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from supervisor.broker.scripts import UNREAD_COPIES
from supervisor.core.reclaim import owner_of
from supervisor.keys import crashes_key, isolated_key, replay_key, retries_key
from supervisor.shared_state import SlotField

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from supervisor.shared_state import SharedState


class Replays:
    """Finds unread copies and pokes workers."""

    def __init__(self, redis: Redis, pool: str, shared: SharedState) -> None:
        """`pool`: its workers are poked."""
        self._redis = redis
        self._pool = pool
        self._shared = shared
        self._next = 0

    async def exist(self, stream: str, group: str) -> bool:
        """Return whether the group has a replay stream. Raises redis-py's errors."""
        return bool(await self._redis.exists(replay_key(stream, group)))

    async def poke_readers(self, stream: str, group: str, slots: Sequence[int]) -> None:
        """Poke as many of the slots as there are unread copies, and each that is a member of the group: it may have
        missed a poke. Raises redis-py's errors."""
        key = replay_key(stream, group)
        named = (key, retries_key(key, group), crashes_key(key, group), isolated_key(key, group))
        unread: int = await self._redis.eval(UNREAD_COPIES.text, len(named), *named, group, len(slots))
        chosen = {slots[(self._next + at) % len(slots)] for at in range(unread)}
        self._next += unread
        members = await self._members(key, group)
        for slot in chosen | members.intersection(slots):
            self._shared.slot(slot).add(SlotField.RESCAN_PENDING, 1)

    async def _members(self, key: str, group: str) -> set[int]:
        """Return the slots of this pool that are members of the group."""
        try:
            rows: Any = await self._redis.xinfo_consumers(key, group)
        except ResponseError:  # the stream was just removed, or its group was destroyed
            return set()
        owners = (owner_of(row["name"].decode()) for row in rows)
        return {owner[1] for owner in owners if owner is not None and owner[0] == self._pool}
