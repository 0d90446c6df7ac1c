"""How long a keeper has seen Redis without a break: only what it saw itself is held against anybody.

While Redis is away, nobody can renew a lease, and every message's idle time grows. A server that was started
again between two looks, another one in its place, or a clock that was set are breaks too, and no command fails
for them: `INFO` tells them apart. (A server keeps its deadlines as times of the day, so a clock that is set an
hour ahead ends all leases at once.)
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

#: A server's clock that differs by more from what it should show was set.
STEP_MS = 500.0


def _monotonic_s() -> float:
    return time.monotonic()


class RedisContinuity:
    """What one keeper has seen of its Redis."""

    def __init__(self, clock: Callable[[], float] = _monotonic_s) -> None:
        """`clock` gives monotonic seconds."""
        self._clock = clock
        self._since_s = clock()
        #: Server's id -> between what its clock is ahead of ours, ms. Behind one address there may be several.
        self._ahead_ms: dict[str, tuple[float, float]] = {}

    @property
    def unbroken_s(self) -> float:
        """For how long nothing was missed."""
        return self._clock() - self._since_s

    def lost(self) -> None:
        """Redis was away."""
        self._since_s = self._clock()

    async def look(self, redis: Redis) -> None:
        """Is it the same server, and has its clock gone on as ours has? Raises redis-py's errors."""
        asked_s = self._clock()
        try:
            info = await redis.info("server")
        except ResponseError:  # forbidden: what is left is that commands fail while it is away
            return
        server, now_ms = str(info.get("run_id", "")), int(info.get("server_time_usec", 0)) / 1000
        ahead_ms = now_ms - self._clock() * 1000, now_ms - asked_s * 1000
        low_ms, high_ms = self._ahead_ms.get(server, (float("inf"), float("-inf")) if self._ahead_ms else ahead_ms)
        if ahead_ms[0] > high_ms + STEP_MS or ahead_ms[1] < low_ms - STEP_MS:
            self.lost()
        self._ahead_ms[server] = ahead_ms
