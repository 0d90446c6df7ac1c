"""The ticks of schedules: what all pools agree on, also in the nights when the clocks are set."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from supervisor.core.schedule import GRACE_MS, MISSED_MAX, LastTick, Schedule
from supervisor.errors import ConfigError
from supervisor.settings.model import Settings
from supervisor.settings.schedule_section import ScheduleSettings

DAY_MS, MINUTE_MS = 86_400_000, 60_000
FIELDS = {"kind": "nightly"}
NOW_MS = int(datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp() * 1000)


def cron(expression: str, timezone: str = "UTC", missed: str = "once") -> Schedule:
    return Schedule("s", "reports", expression, 0, timezone, FIELDS, missed)


def every(ms: int, missed: str = "once") -> Schedule:
    return Schedule("s", "reports", "", ms, "UTC", FIELDS, missed)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def texts(schedule: Schedule, start: str, end: str) -> list[str]:
    ticks = takewhile(lambda tick: tick <= at(end), schedule.after(at(start)))
    return [datetime.fromtimestamp(tick / 1000, ZoneInfo(schedule.timezone)).isoformat() for tick in ticks]


@pytest.mark.parametrize(
    ("expression", "ticks"),
    [
        ("30 2 * * *", ["2026-03-29T03:00:00+02:00"]),
        ("0 3 * * *", ["2026-03-29T03:00:00+02:00"]),
        ("0,30 2,3 * * *", ["2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"]),
        ("30 1 * * *", ["2026-03-29T01:30:00+01:00"]),
    ],
)
def test_the_night_without_an_hour_from_two_to_three(expression: str, ticks: list[str]) -> None:
    assert texts(cron(expression, "Europe/Vienna"), "2026-03-28T12:00+01:00", "2026-03-29T12:00+02:00") == ticks


@pytest.mark.parametrize(
    ("expression", "ticks"),
    [
        ("30 2 * * *", ["2026-10-25T02:30:00+02:00"]),
        ("0 3 * * *", ["2026-10-25T03:00:00+01:00"]),
        ("30 1 * * *", ["2026-10-25T01:30:00+02:00"]),
    ],
)
def test_the_night_with_two_hours_from_two_to_three(expression: str, ticks: list[str]) -> None:
    assert texts(cron(expression, "Europe/Vienna"), "2026-10-24T12:00+02:00", "2026-10-25T12:00+01:00") == ticks


@pytest.mark.parametrize(
    ("start", "end"),
    [("2026-03-29T00:59+01:00", "2026-03-29T05:00+02:00"), ("2026-10-25T00:59+02:00", "2026-10-25T04:00+01:00")],
)
def test_what_comes_every_half_hour_goes_on_in_real_time(start: str, end: str) -> None:
    ticks = list(takewhile(lambda tick: tick <= at(end), cron("*/30 * * * *", "Europe/Vienna").after(at(start))))
    assert {later - sooner for sooner, later in pairwise(ticks)} == {30 * MINUTE_MS}
    assert len(ticks) == (7 if "-03-" in start else 9)


def test_what_comes_in_the_night_when_the_clocks_are_set_by_half_an_hour() -> None:
    schedule = cron("15 */2 * * *", "Australia/Lord_Howe")
    autumn = ["2025-04-06T00:15:00+11:00", "2025-04-06T02:15:00+10:30", "2025-04-06T04:15:00+10:30"]
    assert texts(schedule, "2025-04-05T23:00+11:00", "2025-04-06T05:00+10:30") == autumn
    spring = ["2025-10-05T00:15:00+10:30", "2025-10-05T04:15:00+11:00"]
    assert texts(schedule, "2025-10-04T23:00+10:30", "2025-10-05T05:00+11:00") == spring


EXPRESSIONS = st.sampled_from(
    [
        "* * * * *",
        "*/7 * * * *",
        "0 * * * *",
        "30 2 * * *",
        "0,30 1-3 * * *",
        "15 */2 * * *",
        "0 0 1 * *",
        "5 4 * * SUN",
    ]
)
ZONES = st.sampled_from(["UTC", "Europe/Vienna", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
MOMENTS = st.integers(at("2025-01-01T00:00+00:00"), at("2027-12-31T00:00+00:00"))


@given(EXPRESSIONS, ZONES, MOMENTS)
@example("15 */2 * * *", "Australia/Lord_Howe", 1_743_722_100_000)
def test_ticks_are_the_same_forwards_and_backwards(expression: str, zone: str, ms: int) -> None:
    schedule = cron(expression, zone)
    forwards = list(islice(schedule.after(ms), 20))
    assert forwards == sorted(set(forwards)) and forwards[0] > ms
    backwards = list(takewhile(lambda tick: tick > ms, schedule.until(forwards[-1])))
    assert backwards == forwards[::-1]


@given(st.integers(1_000, 10 * DAY_MS), MOMENTS)
def test_an_interval_counts_from_the_epoch(every_ms: int, ms: int) -> None:
    schedule = every(every_ms)
    assert schedule.next_ms(ms) % every_ms == 0 and 0 < schedule.next_ms(ms) - ms <= every_ms
    assert next(schedule.until(ms)) == schedule.next_ms(ms) - every_ms


@given(st.sampled_from(["skip", "once", "all"]), MOMENTS, st.integers(0, 400 * MINUTE_MS))
def test_what_is_due(missed: str, last_ms: int, away_ms: int) -> None:
    schedule, now_ms = every(MINUTE_MS, missed), last_ms + away_ms
    ticks = list(takewhile(lambda tick: tick <= now_ms, schedule.after(last_ms)))
    due = schedule.due(LastTick(last_ms, schedule.when), now_ms)
    if missed == "all":
        assert due == ticks[-MISSED_MAX:]
    else:
        assert due == ticks[-1:], "of an interval of a minute the last tick is never older than the grace"


def test_with_skip_only_a_tick_that_has_just_passed_is_published() -> None:
    schedule = cron("0 12 * * *", missed="skip")
    last = LastTick(NOW_MS - DAY_MS, schedule.when)
    assert schedule.due(last, NOW_MS - 1) == []
    assert schedule.due(last, NOW_MS) == schedule.due(last, NOW_MS + GRACE_MS) == [NOW_MS]
    assert schedule.due(last, NOW_MS + GRACE_MS + 1) == []


def test_a_schedule_that_was_changed_has_missed_nothing() -> None:
    schedule = cron("0 11 * * *", missed="all")
    assert schedule.due(LastTick(NOW_MS - 5 * DAY_MS, "0 9 * * * UTC"), NOW_MS) == []
    assert len(schedule.due(LastTick(NOW_MS - 5 * DAY_MS, schedule.when), NOW_MS)) == 5


def test_a_clock_that_is_set_back_publishes_nothing_twice() -> None:
    schedule = every(MINUTE_MS, "all")
    assert schedule.due(LastTick(NOW_MS, schedule.when), NOW_MS - 10 * MINUTE_MS) == []


def test_a_message_may_name_its_tick() -> None:
    fields = {"kind": "nightly", "at": "tick {tick}", "n": 1, "tags": ["{tick}"]}
    schedule = Schedule("s", "reports", "0 3 * * *", 0, "Europe/Vienna", fields, "once")
    assert schedule.message(at("2026-06-01T03:00+02:00")) == {
        "kind": "nightly",
        "at": "tick 2026-06-01T03:00:00+02:00",
        "n": "1",
        "tags": '["{tick}"]',
    }


def test_what_redis_holds_of_a_schedule_is_read_again() -> None:
    schedule = cron("0 3 * * *", "Europe/Vienna")
    assert LastTick.parse(f"12 {schedule.when}") == LastTick(12, schedule.when)
    assert LastTick.parse("what is this") == LastTick(0, "is this")
    assert LastTick.parse("² is this") == LastTick(0, "is this"), "a digit, and no number"


# Settings

GOOD = {"stream": "reports", "cron": "0 3 * * *", "fields": FIELDS}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"cron": "0 3 * *"}, "cron = '0 3 .*five fields"),
        ({"cron": "0 0 3 * * *"}, "five fields"),
        ({"cron": "61 3 * * *"}, "bad minute"),
        ({"cron": "0 0 30 2 *"}, "cron = .*(bad day|never comes)"),
        ({"timezone": "Europe/Wienna"}, "timezone = 'Europe/Wienna'.*did you mean 'Europe/Vienna'"),
        ({"timezone": "../etc/passwd"}, "timezone"),
        ({"stream": ""}, "stream = ''.*must be the name of a stream"),
        ({"fields": {}}, "fields = {}: must have at least one field"),
        ({"fields": {"": "x"}}, "fields = .*must have no empty name"),
        ({"fields": {"a": [{"b": float("nan")}]}}, "fields = .*must not have nan or inf"),
        ({"every": "15m"}, "must be left out where every is given"),
        ({"cron": ""}, "must be given where cron is not"),
        ({"cron": "", "every": 0.5}, "every = 0.5: must be at least 1 s"),
        ({"cron": "", "every": "1d", "timezone": "Europe/Vienna"}, "timezone = .*must be left out"),
        ({"missed": "never"}, "missed = 'never'"),
        ({"timezon": "UTC"}, "timezon = 'UTC': unknown key"),
    ],
)
def test_a_schedule_that_is_refused(changed: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        ScheduleSettings(**{**GOOD, **changed})
    assert len(str(caught.value).splitlines()) == 1


def test_a_schedule_of_the_configuration() -> None:
    made = Schedule.of("quarterly", ScheduleSettings(stream="reports", every="15m", fields=FIELDS))
    assert (made.every_ms, made.when, made.missed) == (15 * MINUTE_MS, "every 900 s", "once")
    assert Settings().schedule == {}
    nightly = Schedule.of("nightly", ScheduleSettings(**GOOD, timezone="Europe/Vienna"))
    assert nightly.when == "0 3 * * * Europe/Vienna"
    assert timedelta(milliseconds=nightly.next_ms(NOW_MS) - NOW_MS) == timedelta(hours=13)
