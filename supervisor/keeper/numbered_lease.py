"""A name for each of several like processes that nobody starts by number: an app's, under any server.

The processes of an app know nothing of each other. Each takes the lowest number that no live one has,
with a lease as a pool has one, and works as the consumers of that number.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from supervisor.errors import SupervisorError
from supervisor.keeper.lease import drop, take
from supervisor.keys import pool_id

if TYPE_CHECKING:
    from redis.asyncio import Redis

#: More processes of one app on one host than this are no app.
NUMBERS_MAX = 1000


class NumberedLease:
    """One of the numbers, as long as the lease is renewed."""

    def __init__(self, redis: Redis, pool: str, token: str) -> None:
        """Nothing is taken yet; `find` does that."""
        #: What consumers and lease are named after.
        self.pool = pool
        self.token = token
        self._redis = redis

    @classmethod
    async def find(cls, redis: Redis, host: str, name: str) -> NumberedLease:
        """The lowest that is free, taken. Raises redis-py's errors."""
        token = secrets.token_hex(16)
        for number in range(NUMBERS_MAX):
            seat = cls(redis, pool_id(host, f"{name}-{number}"), token)
            if await seat.renew():
                return seat
        raise SupervisorError(f"{NUMBERS_MAX} processes work as {pool_id(host, name)!r} already")

    async def renew(self) -> bool:
        """Keep it for another lease; False when it has become another's. Raises redis-py's errors."""
        return await take(self._redis, self.pool, self.token)

    async def leave(self) -> None:
        """It is free again, unless it is another's. Raises redis-py's errors."""
        await drop(self._redis, self.pool, self.token)
