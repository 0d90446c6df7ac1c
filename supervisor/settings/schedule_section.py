"""`[schedule."name"]`: a message that is published at given times."""

from math import isfinite
from typing import Any

from supervisor.settings.section import FreeTable, Section, setting
from supervisor.text import did_you_mean
from supervisor.values import Choice, Duration, Kind, Text

#: For shorter intervals, a program with a loop of its own is better.
EVERY_MIN_S = 1


class Cron(Kind):
    """A cron expression."""

    def check(self, value: Any) -> str:
        """Return the expression. Raises ValueError."""
        allowed = (
            'must be five fields (minute, hour, day, month, weekday), such as "0 3 * * *" or "*/15 8-18 * * MON-FRI"'
        )
        if not isinstance(value, str):
            raise ValueError(allowed)
        if value:
            _check_cron(value, allowed)
        return value


def _check_cron(value: str, allowed: str) -> None:
    from datetime import UTC, datetime

    from cronsim import CronSim, CronSimError

    if len(value.split()) != 5:  # noqa: PLR2004 - the five fields of cron
        raise ValueError(allowed)
    try:
        next(CronSim(value, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        raise ValueError(f"{allowed}: {str(error).lower()}") from None
    except StopIteration:
        raise ValueError("never comes") from None


class Timezone(Kind):
    """The name of a timezone."""

    def check(self, value: Any) -> str:
        """Return the name. Raises ValueError with a suggestion."""
        from zoneinfo import ZoneInfo, available_timezones

        try:
            ZoneInfo(value)
        except (OSError, TypeError, ValueError, KeyError):  # its own error is a KeyError
            near = did_you_mean(value, available_timezones()) if isinstance(value, str) else ""
            raise ValueError(f'must be a name of the tz database such as "Europe/Vienna" or "UTC"{near}') from None
        return str(value)


class ScheduleSettings(Section):
    """`[schedule."name"]`: when a message is published, to which stream, and its fields."""

    #: Where the message is published.
    stream: str = setting(Text(), "")
    #: When: a cron expression, or an interval.
    cron: str = setting(Cron(), "")
    every: float = setting(Duration(), 0.0)
    #: The timezone that `cron` is meant in.
    timezone: str = setting(Timezone(), "UTC")
    #: The message; `{tick}` in a text stands for the time of the tick.
    fields: dict[str, Any] = setting(FreeTable(), factory=dict)
    #: Which ticks are made up for that were missed while no pool ran: none, the last one, or all.
    missed: str = setting(Choice("skip", "once", "all"), "once")

    def contradictions(self) -> list[tuple[str, str]]:
        """Return what is missing or does not go together."""
        problems = []
        if not self.stream:
            problems.append(("stream", "must be the name of a stream"))
        if wrong := _wrong_fields(self.fields):
            problems.append(("fields", wrong))
        if self.cron and self.every:
            problems.append(("cron", "must be left out where every is given"))
        elif not self.cron and not self.every:
            problems.append(("every", 'must be given where cron is not, such as "15m"'))
        elif self.every and self.every < EVERY_MIN_S:
            problems.append(("every", f"must be at least {EVERY_MIN_S} s"))
        elif self.every and self.timezone != "UTC":
            problems.append(("timezone", "must be left out: an interval has none, it counts from 1970-01-01 UTC"))
        return problems


def _wrong_fields(fields: dict[str, Any]) -> str:
    """Return why these can't be the fields of a message; empty if they can."""
    if not fields:
        return 'must have at least one field, such as { kind = "nightly" }'
    if "" in fields:
        return "must have no empty name"
    return "" if _is_finite(fields) else "must not have nan or inf, which JSON does not have: write them as text"


def _is_finite(value: Any) -> bool:
    """Return whether the value contains neither NaN nor infinity."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or isfinite(value)
