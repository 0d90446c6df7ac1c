"""Faults are logged once in five seconds, an outage of Redis as one, and its end once."""

import itertools
import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import log
from supervisor.log import QUIET_S, FaultLog, outage_turn
from supervisor.shared_state import HeaderField, SharedState

OPERATIONS: tuple[dict[str, Any], ...] = (
    {"event": "can't settle"},
    {"event": "can't read", "stream": "a", "group": "b"},
    {"event": "can't read", "stream": "c", "group": "d"},
)
SECOND, THIRD = "can't read stream=a group=b", "can't read stream=c group=d"


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


def test_an_outage_of_redis_is_one_line(clock: Clock) -> None:
    lines = Lines()
    faults = FaultLog(lines)
    for error in (ConnectionError("gone"), TimeoutError(), ValueError("BUSY")):
        for operation in OPERATIONS:
            faults.redis(error=error, **operation)
    assert lines.lines == [{"event": "can't settle", "error": "ConnectionError: gone", "also": None, "repeated": None}]
    clock.now_s += QUIET_S
    faults.redis(error=TimeoutError(), **OPERATIONS[2])
    also = f"can't settle, {SECOND}"
    assert lines.lines[1:] == [{**OPERATIONS[2], "error": "TimeoutError", "also": also, "repeated": 8}]
    for operation in OPERATIONS:
        assert len(lines.lines) == 2
        faults.resolved(**operation)
        faults.resolved(**operation)
    assert lines.lines[2:] == [{"event": "works again", "what": THIRD, "reasons": None}]


def test_one_process_of_a_pool_logs_an_outage_at_a_time() -> None:
    shared, processes = SharedState(), []
    for _ in range(8):
        lines = Lines()
        processes.append((lines, FaultLog(lines, outage_turn(shared))))
    for _, faults in processes:
        faults.redis(error=ConnectionError("gone"), **OPERATIONS[0])
    assert [len(lines.lines) for lines, _ in processes] == [1, 0, 0, 0, 0, 0, 0, 0]
    for _, faults in processes:
        faults.resolved(**OPERATIONS[0])
    assert [len(lines.lines) for lines, _ in processes] == [2, 0, 0, 0, 0, 0, 0, 0], "the end is logged by the same one"


class AskedByAnother(SharedState):
    """While a process looks whether the outage is logged, another one does the same."""

    other_logs: bool | None = None

    def get(self, field: HeaderField) -> int:
        found = super().get(field)
        if self.other_logs is None:
            self.other_logs = False
            pid = os.fork()
            if pid == 0:
                os._exit(outage_turn(self)())
            self.other_logs = bool(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        return found


def test_two_processes_that_notice_an_outage_at_once_log_one_line() -> None:
    shared = AskedByAnother()
    logs = outage_turn(shared)()
    assert shared.other_logs is not None
    assert [logs, shared.other_logs] == [True, False]


def test_a_cause_known_only_later_is_logged_at_the_end(clock: Clock) -> None:
    lines = Lines()
    faults = FaultLog(lines)
    for text in ("closed by server", "max number of clients reached", "closed by server"):
        faults.redis("can't settle", ConnectionError(text))
    faults.resolved("can't settle")
    reasons = ["ConnectionError: max number of clients reached"]
    assert lines.lines[1:] == [{"event": "works again", "what": "can't settle", "reasons": reasons}]
    clock.now_s += QUIET_S
    faults.redis("can't settle", ConnectionError("closed by server"))
    faults.resolved("can't settle")
    assert lines.lines[-1] == {"event": "works again", "what": "can't settle", "reasons": None}


def test_a_long_list_is_cut_short(clock: Clock) -> None:
    lines = Lines()
    faults = FaultLog(lines)
    for n in range(60):
        faults.redis("can't read", TimeoutError(), stream=n)
    clock.now_s += QUIET_S
    faults.redis("can't settle", TimeoutError())
    assert lines.lines[1]["also"] == "can't read stream=0, can't read stream=1, can't read stream=2, ..."


def test_a_key_sets_apart_what_is_logged_apart(clock: Clock) -> None:
    lines = Lines()
    faults = FaultLog(lines)
    for key in ("a", "b", "a"):
        faults("handler failed", ValueError("x"), key=key, id="1-0")
    faults("handler failed", TypeError("y"), key="a", id="2-0")
    errors = [(line["id"], line["error"]) for line in lines.lines]
    assert errors == [("1-0", "ValueError: x"), ("1-0", "ValueError: x"), ("2-0", "TypeError: y")]


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(OPERATIONS), st.booleans()), max_size=60))
def test_operations_that_flap_are_logged_rarely(steps: list[tuple[float, dict[str, Any], bool]]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock, lines, at = use_a_clock(monkeypatch), Lines(), []
        faults = FaultLog(lines)
        for wait_s, operation, fails in steps:
            clock.now_s += wait_s
            before = len(lines.lines)
            faults.redis(error=TimeoutError(), **operation) if fails else faults.resolved(**operation)
            at += [(clock.now_s, line["event"]) for line in lines.lines[before:]]
    told = [when_s for when_s, event in at if event != "works again"]
    assert all(later - earlier >= QUIET_S for earlier, later in itertools.pairwise(told))
    events = Counter(event == "works again" for _, event in at)
    assert events[True] <= events[False], "an end is logged only for what was logged"
