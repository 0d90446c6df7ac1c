"""The keys that a benchmark makes in Redis, and their removal: at its end, and by the next one after a kill."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from supervisor import keys
from supervisor.bench.project import GROUPS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

LOOP_GROUP = "redis-py"
LATENCY_GROUP = "latency"
_HOST = re.compile(rb"bench-([0-9a-f]{8})")


@dataclass(frozen=True)
class OwnKeys:
    """The names of one benchmark."""

    token: str

    @property
    def host(self) -> str:
        """The host's name in its pool's id."""
        return f"bench-{self.token}"

    @property
    def stream(self) -> str:
        """The stream that is drained."""
        return f"supervisor-bench:{self.token}"

    @property
    def latency_stream(self) -> str:
        """The stream of the messages for an idle pool."""
        return f"{self.stream}:latency"

    def all(self) -> set[str]:
        """All keys that the benchmark and its pool may have made."""
        pairs = [(self.stream, group) for group in (*GROUPS, LOOP_GROUP)] + [(self.latency_stream, LATENCY_GROUP)]
        beside = (
            keys.dead_key, keys.replay_key, keys.crashes_key, keys.isolated_key, keys.retries_key, keys.reaper_key,
            keys.trimmed_key,
        )  # fmt: skip
        names = {key(of, group) for key in beside for of, group in pairs}
        return names | {of for of, _ in pairs} | {keys.trimmer_key(of) for of, _ in pairs} | {keys.host_key(self.host)}


@contextlib.asynccontextmanager
async def own_keys(redis: Redis) -> AsyncIterator[OwnKeys]:
    """Make the names for one benchmark. Remove their keys at the end, and at once those of killed benchmarks."""
    own = OwnKeys(secrets.token_hex(4))
    # A keeper forgets pools that have been dead for a day and have left nothing in its own groups. This one has only
    # the benchmark's groups, so what it forgets is put back.
    pools: Any = await redis.hgetall(keys.POOLS_KEY)
    for killed in await _killed(redis, pools):
        pools.pop(killed.host.encode())
        await _remove(redis, killed)
    try:
        yield own
    finally:
        # Also when Ctrl-C cancels what runs: it is shielded, and short.
        await asyncio.shield(_remove_and_put_back(redis, own, pools))


async def _killed(redis: Redis, pools: dict[bytes, bytes]) -> list[OwnKeys]:
    """Return the benchmarks among the pools that hold no lease."""
    matches = [match for pool in pools if (match := _HOST.fullmatch(pool))]
    candidates = [OwnKeys(match[1].decode()) for match in matches]
    return [own for own in candidates if not await redis.exists(keys.host_key(own.host))]


async def _remove_and_put_back(redis: Redis, own: OwnKeys, pools: dict[bytes, bytes]) -> None:
    with contextlib.suppress(RedisError):
        await _remove(redis, own)
        for pool, seen_ms in pools.items():
            await redis.hsetnx(keys.POOLS_KEY, pool, seen_ms)


async def _remove(redis: Redis, own: OwnKeys) -> None:
    for name in own.all():
        await redis.unlink(name)
    await redis.hdel(keys.POOLS_KEY, own.host)
