"""Tracks for how long a keeper has seen Redis without a break: only that time counts against consumers and pools.

While Redis is away, no lease can be renewed, and every message's idle time grows. A server that was restarted or
replaced between two looks, and a clock that was set, are breaks too, although no command fails: `INFO` shows them.
(A server keeps its deadlines as times of day, so a clock that is set an hour ahead ends all leases at once.)
"""

import time
from collections.abc import Callable

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from supervisor.keeper.lease import LEASE_MS, RENEW_S

#: A server's clock that is off by more than this was set.
STEP_MS = 500.0
#: A keeper that made no look for longer may have missed an outage in which other pools lost their leases.
LOOK_GAP_S = LEASE_MS / 1000 - RENEW_S


def _monotonic_s() -> float:
    return time.monotonic()


class RedisContinuity:
    """What one keeper has seen of its Redis."""

    def __init__(self, clock: Callable[[], float] = _monotonic_s) -> None:
        self._clock = clock
        self._since_s = self._looked_s = clock()
        self._is_lost = False
        #: Server's id -> bounds of how far its clock is ahead of ours, ms. One address may have several servers.
        self._ahead_ms: dict[str, tuple[float, float]] = {}

    @property
    def unbroken_s(self) -> float:
        """Time since the last break."""
        return self._clock() - self._since_s

    def lost(self) -> None:
        """Note a break: Redis is away. It ends with the next look, and not before."""
        self._since_s, self._is_lost = self._clock(), True

    async def look(self, redis: Redis) -> None:
        """Note a break if the server is another one, its clock was set, or no look was made for long.

        Between two looks Redis may have been away, unseen by a process that was frozen. Raises redis-py's errors.
        """
        asked_s = self._clock()
        if self._is_lost or asked_s - self._looked_s > LOOK_GAP_S:
            self._since_s, self._is_lost = asked_s, False
        self._looked_s = asked_s
        try:
            info = await redis.info("server")
        except ResponseError:  # forbidden; that commands fail while the server is away still shows
            return
        server, now_ms = str(info.get("run_id", "")), int(info.get("server_time_usec", 0)) / 1000
        ahead_ms = now_ms - self._clock() * 1000, now_ms - asked_s * 1000
        low_ms, high_ms = self._ahead_ms.get(server, (float("inf"), float("-inf")) if self._ahead_ms else ahead_ms)
        if ahead_ms[0] > high_ms + STEP_MS or ahead_ms[1] < low_ms - STEP_MS:
            self._since_s = self._clock()
        self._ahead_ms[server] = ahead_ms
