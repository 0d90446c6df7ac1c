"""Publishes the messages of `[schedule]` at their ticks (`core/schedule.py`).

Every keeper does it for the schedules of its own configuration, without an election: the script publishes each tick
once, whoever calls it. Between two ticks nothing is asked of Redis.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from supervisor.broker.redis_errors import REDIS_FAULTS, is_transient
from supervisor.broker.schedules import last_tick, publish_ticks
from supervisor.core.schedule import Schedule, schedules_of
from supervisor.errors import EncodeError
from supervisor.keeper.later_mover import LaterMover
from supervisor.log import FaultLog
from supervisor.settings.model import Settings

#: The clock is looked at this often, since somebody may set it.
LOOK_S = 1.0
#: Pause after an error.
_RETRY_S = 0.5
_FAULT = "can't publish a schedule"


def publishing(
    redis: Redis, settings: Settings, url: str, groups: Iterable[tuple[str, str]], log: Any
) -> list[Coroutine[Any, Any, None]]:
    """Return what a keeper runs to publish messages when they are due: those for later, and those of schedules."""
    streams = dict.fromkeys(stream for stream, _ in groups)
    mover = LaterMover(redis, url, streams, log, connect_timeout_s=settings.redis.connect_timeout_s)
    schedules = schedules_of(settings)
    return [mover.run(), *([Scheduler(redis, schedules, log).run()] if schedules else [])]


class Scheduler:
    """Publishes the messages of some schedules, until it is cancelled."""

    def __init__(
        self, redis: Redis, schedules: Iterable[Schedule], log: Any, clock: Callable[[], float] = time.time
    ) -> None:
        self._redis = redis
        self._log = log
        self._faults = FaultLog(log)
        self._clock = clock
        #: Schedule -> when to look at it, Unix ms: at its next tick.
        self._look_ms: dict[str, int] = {}
        self._schedules = {schedule.name: schedule for schedule in schedules}

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self.run_cycle()
            await asyncio.sleep(self._pause_s())

    async def run_cycle(self) -> int:
        """Publish what is due, and return how many messages. A fault of Redis is logged, and tried again soon."""
        published = 0
        for schedule in self._schedules.values():
            now_ms = int(self._clock() * 1000)
            look_ms = self._look_ms.get(schedule.name, 0)
            if look_ms > now_ms and schedule.next_ms(now_ms) >= look_ms:
                continue
            try:
                published += await self._publish(schedule, now_ms)
            except (*REDIS_FAULTS, EncodeError) as error:
                self._log_fault(schedule, error)
                self._look_ms[schedule.name] = now_ms + int(_RETRY_S * 1000)
            else:
                self._faults.resolved(_FAULT, schedule=schedule.name)
                self._look_ms[schedule.name] = schedule.next_ms(now_ms)
        return published

    async def _publish(self, schedule: Schedule, now_ms: int) -> int:
        last = await last_tick(self._redis, schedule, now_ms)
        ticks = schedule.due(last, now_ms)
        ids = await publish_ticks(self._redis, schedule, ticks) if ticks else []
        if ids:
            self._log.debug("schedule published", schedule=schedule.name, stream=schedule.stream, messages=len(ids))
        return len(ids)

    def _log_fault(self, schedule: Schedule, error: Exception) -> None:
        concerns_all = not isinstance(error, ResponseError | EncodeError)
        if concerns_all or (isinstance(error, ResponseError) and is_transient(error)):
            self._faults.redis(_FAULT, error, schedule=schedule.name)
        else:
            self._faults(_FAULT, error, key=schedule.name, schedule=schedule.name, stream=schedule.stream)

    def _pause_s(self) -> float:
        now_ms = self._clock() * 1000
        return max(0.0, min([LOOK_S, *((look_ms - now_ms) / 1000 for look_ms in self._look_ms.values())]))
