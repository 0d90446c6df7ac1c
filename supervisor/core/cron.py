"""The ticks of a cron expression in a timezone, forwards and backwards. Pure.

CronSim finds them; times are milliseconds since 1970. An expression with `*` for the minute or the hour goes on in real
time, so it is followed from one change of the clocks to the next: CronSim goes from hour to hour, and would miss ticks
where the clocks are set by half an hour.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim

#: Clocks are not set twice within this time.
_STEP_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def ticks_after(expression: str, zone: ZoneInfo, ms: int) -> Iterator[int]:
    """Yield the ticks after this time, in order."""
    if not _goes_on_in_real_time(expression, zone):
        last = ms
        for moment in CronSim(expression, _at(ms, zone)):
            if (tick := _ms(moment)) > last:
                yield (last := tick)
        return
    since = ms + 1
    while True:
        for moment in CronSim(expression, _at(since - 1, _offset(zone, since))):
            tick = _ms(moment)
            if change := next(_changes(zone, since, tick), None):
                since = change
                break
            yield tick
            since = tick + 1


def ticks_until(expression: str, zone: ZoneInfo, ms: int) -> Iterator[int]:
    """Yield the ticks at this time and before, the newest first."""
    if not _goes_on_in_real_time(expression, zone):
        last = ms + 1
        for moment in _backwards(expression, ms, zone):
            if (tick := _ms(moment)) < last:
                yield (last := tick)
        return
    until = ms
    while True:
        for moment in _backwards(expression, until, _offset(zone, until)):
            tick = _ms(moment)
            if changes := list(_changes(zone, tick, until)):
                until = changes[-1] - 1
                break
            yield tick
            until = tick  # the clocks may have been set at this tick


def _backwards(expression: str, ms: int, zone: tzinfo) -> CronSim:
    # It begins before its start, and ignores fractions of a second.
    return CronSim(expression, _at(ms - ms % 1000 + 1000, zone), reverse=True)


def _goes_on_in_real_time(expression: str, zone: ZoneInfo) -> bool:
    return CronSim(expression, _at(0, zone)).fixup_tz is None


def _changes(zone: ZoneInfo, after: int, until: int) -> Iterator[int]:
    """Yield the first moments of each new offset from UTC after `after`, up to and with `until`."""
    while after < until:
        end = min(until, after + _STEP_MS)
        if _offset(zone, after) != _offset(zone, end):
            same, other = after, end
            while other - same > 1:
                middle = (same + other) // 2
                if _offset(zone, middle) == _offset(zone, after):
                    same = middle
                else:
                    other = middle
            yield other
        after = end


def _offset(zone: ZoneInfo, ms: int) -> timezone:
    return timezone(_at(ms, zone).utcoffset() or timedelta())


def _at(ms: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(ms / 1000, zone)


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)
