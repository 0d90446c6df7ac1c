"""Leases for processes of one app, which no arbiter numbers: the workers of any ASGI server.

The processes of an app know nothing of each other. Each takes the lease of the lowest free number, and its consumers
are named after that number.
"""

from __future__ import annotations

import secrets

from redis.asyncio import Redis

from supervisor.errors import SupervisorError
from supervisor.keeper.lease import drop, take
from supervisor.keys import pool_id

#: No app has more processes on one host.
NUMBERS_MAX = 1000


class NumberedLease:
    """The lease of one number, held as long as it is renewed."""

    def __init__(self, redis: Redis, pool: str, token: str) -> None:
        """Take nothing yet; `find` does that."""
        #: The name of the lease and the prefix of the consumers.
        self.pool = pool
        self.token = token
        self._redis = redis

    @classmethod
    async def find(cls, redis: Redis, host: str, name: str) -> NumberedLease:
        """Take the lease of the lowest free number. Raises redis-py's errors."""
        token = secrets.token_hex(16)
        for number in range(NUMBERS_MAX):
            lease = cls(redis, pool_id(host, f"{name}-{number}"), token)
            if await lease.renew():
                return lease
        raise SupervisorError(f"{NUMBERS_MAX} processes work as {pool_id(host, name)!r} already")

    async def renew(self) -> bool:
        """Renew the lease; return False when another process holds it. Raises redis-py's errors."""
        return await take(self._redis, self.pool, self.token)

    async def leave(self) -> None:
        """Give the lease up, if this process holds it. Raises redis-py's errors."""
        await drop(self._redis, self.pool, self.token)
