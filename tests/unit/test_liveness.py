"""Who is judged dead, and when: a child that hangs, never one whose judge stood still, whatever the words say.

And the stacks that it leaves behind.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervisor.arbiter.stack_dumps import BYTES_MAX, StackDumps
from supervisor.core import slot as slots
from supervisor.core.liveness import NS, LivenessMonitor
from supervisor.core.restart import DRAIN_TIMEOUT
from supervisor.core.slot import Limits, Slot, State

LIMITS = Limits(boot_s=15.0, beat_s=5.0, drain_s=25.0)
BEGIN_S = 1000.0
STEP_S, TURN_S, BEAT_S = 0.05, 0.25, 0.5
#: The arbiter can't know which part of its last sleep it was frozen; a word may be rounded up to the next beat but one.
EARLY_S, SLOW_S = 0.3, 2.0
FIELD_MAX = 2**64 - 1
EVER = math.inf


@dataclass
class Child:
    """What a worker writes, in seconds of its own: its beat, and when what it does must be done."""

    beats_until_s: float = EVER
    due_s: float = EVER
    ready: bool = True
    #: How long after a thaw its loop is back.
    wakes_s: float = 0.0
    beat_ns: int = 0
    deadline_ns: int = 0
    next_s: float = BEGIN_S

    def run(self, now_s: float) -> None:
        if now_s < self.next_s:
            return
        self.next_s = now_s + BEAT_S
        if now_s < self.beats_until_s:
            due_s = self.due_s if self.due_s <= now_s else max(self.due_s, now_s + 2 * BEAT_S)
            self.beat_ns = int(now_s * NS)
            self.deadline_ns = 0 if due_s == EVER else int(due_s * NS)


@dataclass
class Arbiter:
    """Judges one slot, as `arbiter.child_group` does."""

    slot: Slot
    monitor: LivenessMonitor = field(default_factory=LivenessMonitor)
    due_s: float = BEGIN_S

    def run(self, now_s: float, child: Child) -> None:
        if now_s < self.due_s:
            return
        late_ns = self.monitor.begin_check(int(now_s * NS), int(self.due_s * NS), {0: child.deadline_ns})
        if late_ns:
            self.slot = slots.postpone(self.slot, late_ns / NS)
        heartbeat = self.monitor.heartbeat(0, ready=child.ready, beat_ns=child.beat_ns, deadline_ns=child.deadline_ns)
        self.slot, _ = slots.advance(self.slot, heartbeat, LIMITS, now_s)
        self.due_s = now_s + TURN_S


STARTING = slots.spawned(Slot(0), 7, BEGIN_S)
READY = replace(STARTING, state=State.READY, ready_s=BEGIN_S)


@dataclass(frozen=True)
class Freeze:
    at_s: float
    for_s: float
    #: The whole machine, or only the arbiter.
    all: bool
    child_first: bool


Lengths = st.sampled_from([1.6, 7.0, 70.0, 4000.0]) | st.floats(1.6, 100)
Freezes = st.lists(st.builds(Freeze, st.floats(0, 40), Lengths, st.booleans(), st.booleans()), max_size=3)


def judged(slot: Slot, child: Child, freezes: list[Freeze], for_s: float = 60.0) -> tuple[str, float]:
    """Why the child was killed, and how many seconds the arbiter itself had run by then."""
    arbiter, now_s, ran_s = Arbiter(slot), BEGIN_S, 0.0
    child.run(now_s)
    ahead = sorted(freezes, key=lambda freeze: freeze.at_s)
    while ran_s < for_s and not arbiter.slot.kill_reason:
        first = True
        while ahead and ran_s >= ahead[0].at_s:
            freeze = ahead.pop(0)
            for step in range(0 if freeze.all else int(freeze.for_s / BEAT_S)):
                child.run(now_s + step * BEAT_S)
            now_s += freeze.for_s
            first = freeze.child_first
            child.next_s = max(child.next_s, now_s + (0.0 if first else child.wakes_s))
        if first:
            child.run(now_s)
        arbiter.run(now_s, child)
        now_s, ran_s = now_s + STEP_S, ran_s + STEP_S
        child.run(now_s)
    return arbiter.slot.kill_reason, ran_s


@settings(deadline=None)
@given(Freezes, st.floats(0, 4))
def test_a_frozen_machine_kills_nobody(freezes: list[Freeze], wakes_s: float) -> None:
    assert judged(READY, Child(wakes_s=wakes_s), freezes) == ("", pytest.approx(60.0, abs=0.1))


@settings(deadline=None)
@given(Freezes, st.floats(0.1, 30), st.floats(0, 4))
@example([Freeze(1.3, 70.0, all=True, child_first=False)], 1.4, 0.0)
@example([Freeze(0.5, 29.0, all=True, child_first=False)], 30.0, 0.0)
def test_what_has_a_deadline_gets_all_the_time_back_and_no_more(
    freezes: list[Freeze], left_s: float, wakes_s: float
) -> None:
    reason, ran_s = judged(READY, Child(due_s=BEGIN_S + left_s, wakes_s=wakes_s), freezes)
    assert reason == "deadline"
    assert left_s - EARLY_S * len(freezes) <= ran_s <= left_s + SLOW_S


def overdue(monitor: LivenessMonitor, now_s: float, deadline_s: float) -> bool:
    """Judged in time."""
    now_ns = int(now_s * NS)
    monitor.begin_check(now_ns, now_ns, {})
    return monitor.heartbeat(0, ready=True, beat_ns=now_ns, deadline_ns=int(deadline_s * NS)).overdue


def test_a_thaw_is_forgotten_by_what_was_begun_after_it() -> None:
    monitor = LivenessMonitor()
    for thaw_s in (1100, 1200, 1300):  # late by 100 s each time, with nothing in hand
        assert monitor.begin_check(thaw_s * NS, (thaw_s - 100) * NS, {0: 0}) == 100 * NS
    assert not overdue(monitor, 1305, 1250), "begun just before, and first told of afterwards"
    assert overdue(monitor, 1351, 1250)
    assert overdue(monitor, 1316, 1315)


def test_what_waits_behind_the_first_deadline_gets_the_time_back_as_well() -> None:
    monitor = LivenessMonitor()
    monitor.begin_check(1100 * NS, 1000 * NS, {0: 1010 * NS})
    assert not overdue(monitor, 1105, 1010)
    assert not overdue(monitor, 1119, 1020), "the second of two that ran when all stood still"
    assert overdue(monitor, 1121, 1020)


def test_a_deadline_that_is_rounded_up_after_a_thaw_is_the_same_one() -> None:
    monitor = LivenessMonitor()
    monitor.begin_check(1100 * NS, 1000 * NS, {0: 1101 * NS})
    assert not overdue(monitor, 1110, 1101.9)
    assert overdue(monitor, 1110, 1102.1)


@settings(deadline=None)
@given(Freezes, st.sampled_from(["boot", DRAIN_TIMEOUT]))
def test_boot_and_drain_get_the_time_back_too(freezes: list[Freeze], reason: str) -> None:
    slot = (
        STARTING if reason == "boot" else replace(READY, state=State.DRAINING, drain_until_s=BEGIN_S + LIMITS.drain_s)
    )
    limit_s = LIMITS.boot_s if reason == "boot" else LIMITS.drain_s
    found, ran_s = judged(slot, Child(ready=reason != "boot"), freezes)
    assert found == reason
    assert limit_s - EARLY_S * len(freezes) <= ran_s <= limit_s + SLOW_S


@settings(deadline=None)
@given(Freezes, st.floats(0, 30))
def test_one_that_hangs_is_found_soon_all_the_same(freezes: list[Freeze], hangs_after_s: float) -> None:
    child = Child(beats_until_s=BEGIN_S + hangs_after_s)
    reason, ran_s = judged(READY, child, freezes)
    assert reason == "hung"
    # Each thaw begins the wait anew.
    assert ran_s <= max([hangs_after_s, *(freeze.at_s for freeze in freezes)]) + LIMITS.beat_s + 1.0
    assert freezes or ran_s >= hangs_after_s + LIMITS.beat_s - BEAT_S


Words = st.integers(0, FIELD_MAX) | st.sampled_from([0, 1, int(BEGIN_S * NS), int((BEGIN_S + 1e6) * NS), FIELD_MAX])


class Scribbled(Child):
    """Another's hand wrote into its words, and its loop never writes them right."""

    def run(self, now_s: float) -> None: ...


@settings(deadline=None)
@given(Words, Words, st.booleans(), Freezes)
@example(FIELD_MAX, FIELD_MAX, True, [])
@example(0, 0, True, [])
def test_no_word_makes_a_child_immortal(beat: int, deadline: int, ready: bool, freezes: list[Freeze]) -> None:
    child = Scribbled(ready=ready, beat_ns=beat, deadline_ns=deadline)
    reason, ran_s = judged(READY if ready else STARTING, child, freezes)
    last_s = max((freeze.at_s for freeze in freezes), default=0.0)
    assert reason
    assert ran_s <= max(LIMITS.boot_s, last_s + LIMITS.beat_s) + 1.0


def quiet_s(beat_ns: Callable[[int, int], int]) -> list[float]:
    """How quiet a READY child seems, turn by turn, that has written this by the turn's number and time."""
    monitor, found = LivenessMonitor(), []
    for turn in range(100):
        now_ns = int((BEGIN_S + turn * TURN_S) * NS)
        monitor.begin_check(now_ns, now_ns, {})
        found.append(monitor.heartbeat(0, ready=True, beat_ns=beat_ns(turn, now_ns), deadline_ns=0).silent_s)
    return found


@pytest.mark.parametrize("word", [0, FIELD_MAX])
def test_a_wrong_word_is_forgotten_when_the_child_writes_again(word: int) -> None:
    # Wrong for 3 s, right for 1 s, and so on.
    assert 2.5 < max(quiet_s(lambda turn, now_ns: word if turn % 16 < 12 else now_ns)) <= 3.0


def test_a_child_whose_clock_is_ahead_lives_as_long_as_it_beats() -> None:
    assert max(quiet_s(lambda turn, _now_ns: int((BEGIN_S + 1e6 + turn // 2 * BEAT_S) * NS))) <= BEAT_S


# StackDumps


@pytest.fixture(params=["memfd", "unlinked file"])
def stacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StackDumps]:
    if request.param == "unlinked file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("Linux's")
    found = StackDumps()
    yield found
    for fd in found.fds():
        os.close(fd)


#: Writes its stacks for each line that it gets, as a worker does for SIGUSR2; in the end it crashes.
DUMPER = """
import ctypes, faulthandler, os, signal, sys
fd = int(sys.argv[1])
faulthandler.enable(file=fd)
faulthandler.register(signal.SIGUSR2, file=fd, all_threads=True, chain=False)

def in_hand():
    for line in sys.stdin:
        os.kill(os.getpid(), signal.SIGUSR2)
        print("dumped", flush=True)

in_hand()
os.kill(os.getpid(), signal.SIGSEGV)
"""
#: The same as a child of the arbiter: everything below `_run_child` was there before the fork.
FORKED = """
import os, sys, threading
from supervisor.arbiter import fork

def in_hand():
    import faulthandler
    faulthandler.dump_traceback(fd)
    other = threading.Event()
    threading.Thread(target=other.wait, daemon=True).start()
    faulthandler.dump_traceback(fd)
    return 0

def arbiters_own():
    pid = fork.fork_child(in_hand, name="child", stack_fd=fd, close=[])
    os.waitpid(pid, 0)

fd = int(sys.argv[1])
arbiters_own()
"""


def test_each_dump_of_a_child_is_read_once_and_whole(stacks: StackDumps) -> None:
    fd = stacks.fresh("worker 0")
    os.write(stacks.fresh("worker 1"), b"another's")
    child = subprocess.Popen(
        [sys.executable, "-c", DUMPER, str(fd)], pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(3):
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "dumped\n"
            text = stacks.take("worker 0")
            assert text.startswith("Current thread 0x")
            assert "in in_hand" in text
            assert stacks.take("worker 0") == ""
        child.stdin.close()
        assert child.wait(10) == -signal.SIGSEGV
    assert stacks.take("worker 0").startswith("Fatal Python error: Segmentation fault")
    assert stacks.take("worker 1") == "another's"


def test_a_dump_ends_where_the_child_began(stacks: StackDumps) -> None:
    fd = stacks.fresh("worker 0")
    subprocess.run([sys.executable, "-c", FORKED, str(fd)], pass_fds=[fd], check=True)
    text = stacks.take("worker 0")
    assert text.count(" in in_hand") == text.count(" in _run_child") == 2
    assert " in arbiters_own" not in text and " in fork_child" not in text
    assert " in wait" in text, "other threads are there"


def test_a_successor_starts_with_an_empty_file_in_the_same_place(stacks: StackDumps) -> None:
    fd = stacks.fresh("worker 0")
    os.write(fd, b"of the one before " * 100)
    assert stacks.fresh("worker 0") == fd
    os.write(fd, b"mine")
    assert not os.get_inheritable(fd)
    handover_slot = StackDumps(stacks.by_name)
    assert (handover_slot.fds(), handover_slot.take("worker 0")) == ([fd], "mine")
    assert stacks.take("nobody") == ""


def test_a_dump_is_cut_and_never_too_odd_to_read(stacks: StackDumps) -> None:
    os.write(stacks.fresh("worker 0"), b"\xff\xfe first\n" + b"x" * 3 * BYTES_MAX)
    text = stacks.take("worker 0")
    assert "first" in text
    assert len(text) == BYTES_MAX
