"""The pool's lease in Redis, which proves that the pool is alive.

The lease is named after the pool and carries a token that is kept in the state directory. A pool that is started
again from there takes it over at once. Any other pool of the same name is refused when the holder is seen alive, and
else waits for the lease's end: two live pools of one name would share consumers, and so each other's pending messages.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from supervisor.broker.redis_errors import NOPERM, REDIS_FAULTS, code_of
from supervisor.broker.scripts import DROP_LEASE, NOTE_POOL, TAKE_LEASE, Script
from supervisor.errors import SupervisorError
from supervisor.keys import POOLS_KEY, host_key, pool_id
from supervisor.log import FaultLog

#: Without a renewal for this long the pool counts as dead.
LEASE_MS = 10_000
#: Three renewals in a lease, so that one lost renewal costs nothing.
RENEW_S = LEASE_MS / 3000
#: How often a lease is looked at whose end is awaited.
WATCH_S = 0.1
#: No app has more processes on one host.
NUMBERS_MAX = 1000


async def take(redis: Redis, pool: str, token: str) -> bool:
    """Take or renew the lease; return False when another pool holds it.

    The pool is known to exist from then on, before its first worker can read a message.
    """
    taken: Any = await _run(redis, TAKE_LEASE, host_key(pool), token, LEASE_MS)
    if taken:
        await _run(redis, NOTE_POOL, POOLS_KEY, pool, int(time.time() * 1000))
    return bool(taken)


async def renew(redis: Redis, pool: str, token: str, faults: FaultLog, *, of_app: bool = False) -> bool:
    """Renew the lease; return False when another holds it. Raises redis-py's errors, and logs them."""
    try:
        renewed = await take(redis, pool, token)
    except REDIS_FAULTS as error:
        faults.redis("can't renew the app name" if of_app else "can't renew the lease", error)
        raise
    faults.resolved("can't renew the app name" if of_app else "can't renew the lease")
    return renewed


async def take_when_free(redis: Redis, pool: str, token: str, waiting: Callable[[str, float], None]) -> bool:
    """Take the lease, after its end if another token holds it; return False when its holder renews it.

    A pool that was killed can't give its lease up, and in a new container it is started with a new token. `waiting` is
    called once, with the holder's token and the seconds until the end, before the wait begins; it raises to refuse.
    """
    holder, left_ms = None, 0
    while not await take(redis, pool, token):
        pipe = redis.pipeline(transaction=False)
        pipe.get(host_key(pool))
        pipe.pttl(host_key(pool))
        now_holder, now_left_ms = await pipe.execute()
        if now_holder is None:  # it has just ended
            continue
        if holder is None:
            waiting(now_holder.decode(), now_left_ms / 1000)
        elif now_holder != holder or now_left_ms > left_ms:
            return False
        holder, left_ms = now_holder, now_left_ms
        await asyncio.sleep(max(0.001, min(WATCH_S, now_left_ms / 1000)))
    return True


async def take_free_number(redis: Redis, host: str, name: str) -> tuple[str, str]:
    """Take the lease of `<host>:<name>-<number>` with the lowest free number; return its pool and token.

    For the processes of one app, which no arbiter numbers and which know nothing of each other.
    """
    token = secrets.token_hex(16)
    for number in range(NUMBERS_MAX):
        pool = pool_id(host, f"{name}-{number}")
        if await take(redis, pool, token):
            return pool, token
    raise SupervisorError(f"{NUMBERS_MAX} processes work as {pool_id(host, name)!r} already")


async def drop(redis: Redis, pool: str, token: str) -> None:
    """Give the lease up, so that other pools need not wait for its end."""
    await _run(redis, DROP_LEASE, host_key(pool), token)


async def elected(redis: Redis, key: str, token: str) -> bool:
    """Return whether this keeper is elected for the task of `key`, for one lease from now."""
    chosen: Any = await _run(redis, TAKE_LEASE, key, token, LEASE_MS)
    return bool(chosen)


async def _run(redis: Redis, script: Script, key: str, *arguments: str | int) -> Any:
    """Run a script on its key. The error for a missing right names all that the script needs, which Redis does not."""
    try:
        return await redis.eval(script.text, 1, key, *arguments)
    except ResponseError as error:
        if code_of(error) != NOPERM:
            raise
        commands = sorted(set(re.findall(r"redis\.call\('([A-Z]+)'", script.text)))
        rights = " ".join(f"+{command.lower()}" for command in ("EVAL", *commands))
        raise NoPermissionError(f"{str(error).rstrip('.')}; it needs {rights}, and to read and write {key!r}") from None
