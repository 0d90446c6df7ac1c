"""The pool's lease in Redis: proof for everyone that this pool is alive.

The lease is named after the pool and carries a token that is kept in the state directory. A pool that
is started again from there takes it over at once; any other of the same name is refused, since two
live pools of one name would share consumers and so each other's pending messages.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from supervisor.broker.scripts import DROP_LEASE, TAKE_LEASE
from supervisor.keys import POOLS_KEY, host_key

if TYPE_CHECKING:
    from redis.asyncio import Redis

#: After this long without a renewal the pool counts as dead.
LEASE_MS = 10_000
#: Renewed three times in a lease, so that one lost renewal costs nothing.
RENEW_S = LEASE_MS / 3000


async def take(redis: Redis, pool: str, token: str) -> bool:
    """Take or renew the lease; False when another pool holds it.

    Who has taken it is known to have lived, before its first worker can have read a message.
    """
    taken: Any = await redis.eval(TAKE_LEASE.text, 1, host_key(pool), token, LEASE_MS)
    if taken:
        await redis.hset(POOLS_KEY, pool, int(time.time() * 1000))
    return bool(taken)


async def drop(redis: Redis, pool: str, token: str) -> None:
    """Give the lease back, so that others need not wait for its end."""
    await redis.eval(DROP_LEASE.text, 1, host_key(pool), token)


async def elected(redis: Redis, key: str, token: str) -> bool:
    """Whether this keeper is the one that does what `key` stands for; it stays so for a lease from now."""
    chosen: Any = await redis.eval(TAKE_LEASE.text, 1, key, token, LEASE_MS)
    return bool(chosen)
