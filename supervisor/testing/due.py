"""Publishes in a `TestPool` what a keeper would publish: messages for later, and schedules."""

import time
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis

from supervisor.broker import later_set as later
from supervisor.core.later import parse_member
from supervisor.core.schedule import schedules_of
from supervisor.keeper.scheduler import Scheduler
from supervisor.settings.model import Settings

_BATCH_MAX = 100


class DuePublisher:
    """Publishes what is due by a clock that can be moved."""

    def __init__(self, redis: Redis, settings: Settings, streams: Iterable[str], log: Any) -> None:
        self._redis = redis
        self._streams = set(streams)
        self._ahead_ms = 0
        self._scheduler = Scheduler(redis, schedules_of(settings), log, lambda: time.time() + self._ahead_ms / 1000)

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self._ahead_ms += round(seconds * 1000)

    async def publish(self) -> bool:
        """Publish what is due; return whether something was. Raises ValueError for a malformed member."""
        published = bool(await self._scheduler.run_cycle())
        for stream in {*self._streams, *await later.noted_streams(self._redis)}:
            while members := (await later.due(self._redis, stream, _BATCH_MAX, self._ahead_ms)).members:
                messages = [(member, parse_member(member)) for member in members]
                await later.move(self._redis, stream, messages, self._ahead_ms)
                published = True
        return published
