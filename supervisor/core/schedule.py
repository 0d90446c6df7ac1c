"""When a schedule's message is published: its ticks, and which of them are due or were missed. Pure.

1. The ticks follow from the schedule and the clock alone, so all pools agree on them.
2. A cron expression is meant in a timezone. A time that the clocks skip in spring comes once, right after the gap; a
   time that comes twice in autumn comes once. (Expressions with `*` for the minute or the hour go on in real time.)
3. An interval counts from 1970-01-01 UTC.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice, takewhile
from typing import Any
from zoneinfo import ZoneInfo

from supervisor.core.cron import ticks_after, ticks_until
from supervisor.core.encode import encode_fields
from supervisor.core.ids import parse_number
from supervisor.settings.model import Settings
from supervisor.settings.schedule_section import ScheduleSettings

#: A tick that is older than this was missed.
GRACE_MS = 60_000
#: With missed = "all", at most this many missed ticks are published: the last ones.
MISSED_MAX = 100
TICK = "{tick}"


@dataclass(frozen=True, slots=True)
class LastTick:
    """What Redis knows of a schedule."""

    ms: int
    #: When the schedule came at that time: a changed one has missed nothing.
    when: str

    @classmethod
    def parse(cls, text: str) -> "LastTick":
        """Return the tick of `<ms> <when>`; its time is 0 where that is not a number."""
        ms, _, when = text.partition(" ")
        return cls(parse_number(ms) or 0, when)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A message that is published at each tick."""

    name: str
    stream: str
    cron: str
    every_ms: int
    timezone: str
    fields: Mapping[str, Any]
    missed: str

    @classmethod
    def of(cls, name: str, settings: ScheduleSettings) -> "Schedule":
        """Return the schedule of these settings."""
        every_ms = round(settings.every * 1000)
        return cls(name, settings.stream, settings.cron, every_ms, settings.timezone, settings.fields, settings.missed)

    @property
    def when(self) -> str:
        """The times of the ticks in words, for Redis and for people."""
        return f"{self.cron} {self.timezone}" if self.cron else f"every {self.every_ms / 1000:g} s"

    def message(self, tick_ms: int) -> dict[str, str]:
        """Return the fields of the message of a tick. Raises EncodeError."""
        text = datetime.fromtimestamp(tick_ms / 1000, ZoneInfo(self.timezone)).isoformat()
        return encode_fields({n: v.replace(TICK, text) if isinstance(v, str) else v for n, v in self.fields.items()})

    def after(self, ms: int) -> Iterator[int]:
        """Yield the ticks after this time, in order."""
        if self.every_ms:
            tick = ms - ms % self.every_ms
            while True:
                tick += self.every_ms
                yield tick
        yield from ticks_after(self.cron, ZoneInfo(self.timezone), ms)

    def until(self, ms: int) -> Iterator[int]:
        """Yield the ticks at this time and before, the newest first."""
        if self.every_ms:
            yield from range(ms - ms % self.every_ms, -1, -self.every_ms)
        else:
            yield from ticks_until(self.cron, ZoneInfo(self.timezone), ms)

    def next_ms(self, ms: int) -> int:
        """Return the first tick after this time."""
        return next(self.after(ms))

    def due(self, last: LastTick, now_ms: int) -> list[int]:
        """Return the ticks to publish now, in order: those after the last one, as `missed` says."""
        newest = islice(self.until(now_ms), MISSED_MAX if self.missed == "all" else 1)
        ticks = list(takewhile(lambda tick: tick > last.ms, newest))
        missed = self.missed if last.when == self.when else "skip"
        if missed == "skip":
            ticks = [tick for tick in ticks[:1] if now_ms - tick <= GRACE_MS]
        return ticks[::-1]


def schedules_of(settings: Settings) -> list[Schedule]:
    """Return the schedules of the configuration."""
    return [Schedule.of(name, one) for name, one in settings.schedule.items()]
