"""The pool's lease in Redis: proof for everyone that this pool is alive.

The lease is named after the pool and carries a token that is kept in the state directory. A pool that
is started again from there takes it over at once; any other of the same name is refused, since two
live pools of one name would share consumers and so each other's pending messages.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING, Any

from supervisor.broker.scripts import DROP_LEASE, TAKE_LEASE
from supervisor.names import host_key

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

#: After this long without a renewal the pool counts as dead.
LEASE_MS = 10_000
#: Renewed three times in a lease, so that one lost renewal costs nothing.
RENEW_S = LEASE_MS / 3000


def read_token(path: Path) -> str:
    """The token kept at `path`, made at the first call."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(16)
    draft = path.with_suffix(f".{os.getpid()}")
    draft.write_text(token)
    draft.chmod(0o600)
    draft.rename(path)
    return token


async def take(redis: Redis, pool: str, token: str) -> bool:
    """Take or renew the lease; False when another pool holds it."""
    taken: Any = await redis.eval(TAKE_LEASE.text, 1, host_key(pool), token, LEASE_MS)
    return bool(taken)


async def drop(redis: Redis, pool: str, token: str) -> None:
    """Give the lease back, so that others need not wait for its end."""
    await redis.eval(DROP_LEASE.text, 1, host_key(pool), token)
