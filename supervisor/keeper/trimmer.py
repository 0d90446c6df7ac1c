"""Removes what every group has settled from streams that have a retention.

1. For each stream one keeper is elected, like the reaper. The script `broker/lua/trim.lua` decides what may go, and is
   called again while it removes something.
2. One look takes at most a second, so that the lease is renewed in time; the next look goes on.
3. A group that holds back more is reported after a while, and again from time to time.

Streams of dead letters are never trimmed: a dead letter is all that is left of its message.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

from redis.asyncio import Redis

from supervisor.broker.scripts import TRIM
from supervisor.core.retention import HeldBackTimer, Retention, retention_of
from supervisor.keeper.duty import duty
from supervisor.keeper.lease import elected
from supervisor.keys import crashes_key, retries_key, trimmer_key
from supervisor.log import FaultLog
from supervisor.settings.model import Settings
from supervisor.text import decoded

#: Entries removed by one call, at most: about 1 ms of the server's time.
LIMIT = 10_000
LOOK_S = 1.0


class Trimmer:
    """Trims the streams of one pool's handlers."""

    def __init__(
        self,
        redis: Redis,
        settings: Settings,
        token: str,
        groups: Sequence[tuple[str, str]],
        faults: FaultLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`groups` are the (stream, group) of the pool's handlers; a stream that lacks one of them is not trimmed."""
        self._redis = redis
        self._token = token
        self._faults = faults
        self._clock = clock
        self._held_back = HeldBackTimer()
        #: In the order of the next look; each look moves the first stream to the end.
        self._work: deque[tuple[str, Retention, list[str]]] = deque()
        for stream in dict.fromkeys(stream for stream, _ in groups):
            if retention := retention_of(settings, stream):
                self._work.append((stream, retention, [group for other, group in groups if other == stream]))

    async def look(self) -> None:
        """Trim all streams that have a retention. Raises redis-py's errors when Redis is away."""
        until_s = time.monotonic() + LOOK_S
        for stream, retention, groups in self._work:
            with duty(self._faults, "trim", stream):
                await self._trim(stream, retention, groups, until_s)
        self._work.rotate(-1)

    async def _trim(self, stream: str, retention: Retention, groups: list[str], until_s: float) -> None:
        if time.monotonic() > until_s or not await elected(self._redis, trimmer_key(stream), self._token):
            return
        keys = [stream, *(key(stream, group) for group in groups for key in (retries_key, crashes_key))]
        limits = (int(retention.max_age_s * 1000), retention.max_length, LIMIT)
        total, holder = 0, b""
        while time.monotonic() < until_s:
            removed, holder = await self._redis.eval(TRIM.text, len(keys), *keys, *limits, *groups)
            total += removed
            if not removed:
                break
        if total:
            self._faults.log.debug("stream trimmed", stream=stream, entries=total)
        held_s = self._held_back.held_s(stream, self._clock(), held=bool(holder))
        if held_s is not None:
            self._faults.log.warning(
                "retention held back",
                stream=stream,
                group=decoded(holder),
                held_s=round(held_s),
            )
