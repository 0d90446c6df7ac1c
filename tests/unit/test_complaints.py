"""What is said of faults: once in five seconds, all of Redis's together, and that they are over once."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import log
from supervisor.log import QUIET_S, Complaints

WHATS = ("can't settle", "can't read a as b", "can't read c as d")


class Lines:
    """A logger that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def warning(self, event: str, **words: Any) -> None:
        self.lines.append({"event": event, **words})

    info = warning


class Clock:
    """Time as a test wants it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return use_a_clock(monkeypatch)


def use_a_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    plain = log.Limiter
    monkeypatch.setattr(log, "Limiter", lambda: plain(clock))
    return clock


def test_all_that_fails_for_redis_is_one_line(clock: Clock) -> None:
    lines = Lines()
    complain = Complaints(lines)
    for error in (ConnectionError("gone"), TimeoutError(), ValueError("BUSY")):
        for what in WHATS:
            complain.redis(what, error)
    assert lines.lines == [{"event": WHATS[0], "error": "ConnectionError: gone", "also": None, "repeated": None}]
    clock.now_s += QUIET_S
    complain.redis(WHATS[2], TimeoutError())
    assert lines.lines[1:] == [
        {"event": WHATS[2], "error": "TimeoutError", "also": f"{WHATS[0]}, {WHATS[1]}", "repeated": 8}
    ]
    for what in WHATS:
        assert len(lines.lines) == 2
        complain.over(what)
        complain.over(what)
    assert lines.lines[2:] == [{"event": "works again", "what": WHATS[2]}]


def test_why_it_failed_is_told_at_the_end_where_the_first_words_hid_it(clock: Clock) -> None:
    lines = Lines()
    complain = Complaints(lines)
    for text in ("closed by server", "max number of clients reached", "closed by server"):
        complain.redis(WHATS[0], ConnectionError(text))
    complain.over(WHATS[0])
    reasons = ["ConnectionError: max number of clients reached"]
    assert lines.lines[1:] == [{"event": "works again", "what": WHATS[0], "reasons": reasons}]
    clock.now_s += QUIET_S
    complain.redis(WHATS[0], ConnectionError("closed by server"))
    complain.over(WHATS[0])
    assert lines.lines[-1] == {"event": "works again", "what": WHATS[0]}


def test_a_long_list_is_cut_short(clock: Clock) -> None:
    lines = Lines()
    complain = Complaints(lines)
    for n in range(60):
        complain.redis(f"can't read {n}", TimeoutError())
    clock.now_s += QUIET_S
    complain.redis("can't settle", TimeoutError())
    assert lines.lines[1]["also"] == "can't read 0, can't read 1, can't read 2, ..."


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(WHATS), st.booleans()), max_size=60))
def test_however_it_flaps_it_is_told_rarely(steps: list[tuple[float, str, bool]]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock, lines, at = use_a_clock(monkeypatch), Lines(), []
        complain = Complaints(lines)
        for wait_s, what, fails in steps:
            clock.now_s += wait_s
            before = len(lines.lines)
            complain.redis(what, TimeoutError()) if fails else complain.over(what)
            at += [(clock.now_s, line["event"]) for line in lines.lines[before:]]
    told = [when_s for when_s, event in at if event != "works again"]
    assert all(later - earlier >= QUIET_S for earlier, later in itertools.pairwise(told))
    events = Counter(event == "works again" for _, event in at)
    assert events[True] <= events[False], "nothing is over that was not told of"
