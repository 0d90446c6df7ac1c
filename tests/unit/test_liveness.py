"""Which children are killed: those that hang, and none because the arbiter or the machine was suspended.

Also the stack dumps that children leave.
"""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from supervisor.arbiter.stack_dumps import BYTES_MAX, StackDumps
from supervisor.core import slot as slots
from supervisor.core.liveness import NS, LivenessMonitor
from supervisor.core.restart_policy import DRAIN_TIMEOUT
from supervisor.core.slot import Limits, Slot, State

LIMITS = Limits(boot_s=15.0, beat_s=5.0, drain_s=25.0)
BEGIN_S = 1000.0
STEP_S, CHECK_S, BEAT_S = 0.05, 0.25, 0.5
#: The arbiter can't know which part of its last sleep was the suspension; deadlines are rounded up by two beats.
EARLY_S, SLOW_S = 0.3, 2.0
FIELD_MAX = 2**64 - 1
EVER = math.inf


@dataclass
class Child:
    """What a worker writes: its beats and its deadline."""

    beats_until_s: float = EVER
    due_s: float = EVER
    ready: bool = True
    #: How long its loop takes to continue after a suspension.
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
    """Checks one slot, as `arbiter.restart_children` does."""

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
        self.due_s = now_s + CHECK_S


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


def killed(slot: Slot, child: Child, freezes: list[Freeze], for_s: float = 60.0) -> tuple[str, float]:
    """Return why the child was killed and how many seconds the arbiter itself had run by then."""
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


@given(Freezes, st.floats(0, 4))
def test_a_suspended_machine_kills_no_child(freezes: list[Freeze], wakes_s: float) -> None:
    assert killed(READY, Child(wakes_s=wakes_s), freezes) == ("", pytest.approx(60.0, abs=0.1))


@given(Freezes, st.floats(0.1, 30), st.floats(0, 4))
@example([Freeze(1.3, 70.0, all=True, child_first=False)], 1.4, 0.0)
@example([Freeze(0.5, 29.0, all=True, child_first=False)], 30.0, 0.0)
def test_a_deadline_is_extended_by_the_suspension_and_no_more(
    freezes: list[Freeze], left_s: float, wakes_s: float
) -> None:
    reason, ran_s = killed(READY, Child(due_s=BEGIN_S + left_s, wakes_s=wakes_s), freezes)
    assert reason == "deadline"
    assert left_s - EARLY_S * len(freezes) <= ran_s <= left_s + SLOW_S


def overdue(monitor: LivenessMonitor, now_s: float, deadline_s: float) -> bool:
    """Return whether the child is overdue at a check without delay."""
    now_ns = int(now_s * NS)
    monitor.begin_check(now_ns, now_ns, {})
    return monitor.heartbeat(0, ready=True, beat_ns=now_ns, deadline_ns=int(deadline_s * NS)).overdue


def test_work_started_after_a_suspension_gets_no_extension() -> None:
    monitor = LivenessMonitor()
    for thaw_s in (1100, 1200, 1300):  # late by 100 s each time, without a deadline
        assert monitor.begin_check(thaw_s * NS, (thaw_s - 100) * NS, {0: 0}) == 100 * NS
    assert not overdue(monitor, 1305, 1250), "started just before, reported afterwards"
    assert overdue(monitor, 1351, 1250)
    assert overdue(monitor, 1316, 1315)


def test_later_deadlines_from_before_a_suspension_are_extended_too() -> None:
    monitor = LivenessMonitor()
    monitor.begin_check(1100 * NS, 1000 * NS, {0: 1010 * NS})
    assert not overdue(monitor, 1105, 1010)
    assert not overdue(monitor, 1119, 1020), "the second of two that ran during the suspension"
    assert overdue(monitor, 1121, 1020)


def test_a_deadline_rounded_up_after_a_suspension_is_extended() -> None:
    monitor = LivenessMonitor()
    monitor.begin_check(1100 * NS, 1000 * NS, {0: 1101 * NS})
    assert not overdue(monitor, 1110, 1101.9)
    assert overdue(monitor, 1110, 1102.1)


@given(Freezes, st.sampled_from(["boot", DRAIN_TIMEOUT]))
def test_boot_and_drain_limits_are_extended_too(freezes: list[Freeze], reason: str) -> None:
    slot = (
        STARTING if reason == "boot" else replace(READY, state=State.DRAINING, drain_until_s=BEGIN_S + LIMITS.drain_s)
    )
    limit_s = LIMITS.boot_s if reason == "boot" else LIMITS.drain_s
    found, ran_s = killed(slot, Child(ready=reason != "boot"), freezes)
    assert found == reason
    assert limit_s - EARLY_S * len(freezes) <= ran_s <= limit_s + SLOW_S


@given(Freezes, st.floats(0, 30))
def test_a_hung_child_is_found_soon_in_spite_of_suspensions(freezes: list[Freeze], hangs_after_s: float) -> None:
    child = Child(beats_until_s=BEGIN_S + hangs_after_s)
    reason, ran_s = killed(READY, child, freezes)
    assert reason == "hung"
    # Each suspension restarts the wait.
    assert ran_s <= max([hangs_after_s, *(freeze.at_s for freeze in freezes)]) + LIMITS.beat_s + 1.0
    assert freezes or ran_s >= hangs_after_s + LIMITS.beat_s - BEAT_S


FieldValues = st.integers(0, FIELD_MAX) | st.sampled_from([0, 1, int(BEGIN_S * NS), int((BEGIN_S + 1e6) * NS)])


class Overwritten(Child):
    """Its fields hold garbage, and it never writes them again."""

    def run(self, now_s: float) -> None: ...


@given(FieldValues, FieldValues, st.booleans(), Freezes)
@example(FIELD_MAX, FIELD_MAX, True, [])
@example(0, 0, True, [])
def test_no_value_in_shared_memory_keeps_a_hung_child_alive(
    beat: int, deadline: int, ready: bool, freezes: list[Freeze]
) -> None:
    child = Overwritten(ready=ready, beat_ns=beat, deadline_ns=deadline)
    reason, ran_s = killed(READY if ready else STARTING, child, freezes)
    last_s = max((freeze.at_s for freeze in freezes), default=0.0)
    assert reason
    assert ran_s <= max(LIMITS.boot_s, last_s + LIMITS.beat_s) + 1.0


def silent_s(beat_ns: Callable[[int, int], int]) -> list[float]:
    """Return how long a READY child seems silent at each check; `beat_ns` gives its beat by check number and time."""
    monitor, found = LivenessMonitor(), []
    for check in range(100):
        now_ns = int((BEGIN_S + check * CHECK_S) * NS)
        monitor.begin_check(now_ns, now_ns, {})
        found.append(monitor.heartbeat(0, ready=True, beat_ns=beat_ns(check, now_ns), deadline_ns=0).silent_s)
    return found


@pytest.mark.parametrize("value", [0, FIELD_MAX])
def test_garbage_is_forgotten_when_the_child_beats_again(value: int) -> None:
    # Wrong for 3 s, right for 1 s, and so on.
    assert 2.5 < max(silent_s(lambda check, now_ns: value if check % 16 < 12 else now_ns)) <= 3.0


def test_a_child_with_a_fast_clock_lives_while_it_beats() -> None:
    assert max(silent_s(lambda check, _now_ns: int((BEGIN_S + 1e6 + check // 2 * BEAT_S) * NS))) <= BEAT_S


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
    pid = fork.fork_child(in_hand, name="child", fds=fork.Descriptors(fd, []))
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
        assert child.wait(30) == -signal.SIGSEGV
    assert stacks.take("worker 0").startswith("Fatal Python error: Segmentation fault")
    assert stacks.take("worker 1") == "another's"


def test_a_dump_omits_the_arbiters_frames(stacks: StackDumps) -> None:
    fd = stacks.fresh("worker 0")
    subprocess.run([sys.executable, "-c", FORKED, str(fd)], pass_fds=[fd], check=True)
    text = stacks.take("worker 0")
    assert text.count(" in in_hand") == text.count(" in _run_child") == 2
    assert " in arbiters_own" not in text and " in fork_child" not in text
    assert " in wait" in text, "other threads are included"


def test_a_new_child_gets_the_same_file_empty(stacks: StackDumps) -> None:
    fd = stacks.fresh("worker 0")
    os.write(fd, b"of the one before " * 100)
    assert stacks.fresh("worker 0") == fd
    os.write(fd, b"mine")
    assert not os.get_inheritable(fd)
    successor = StackDumps(stacks.by_name)
    assert (successor.fds(), successor.take("worker 0")) == ([fd], "mine")
    assert stacks.take("nobody") == ""


def test_a_dump_is_truncated_and_decoded_with_replacements(stacks: StackDumps) -> None:
    os.write(stacks.fresh("worker 0"), b"\xff\xfe first\n" + b"x" * 3 * BYTES_MAX)
    text = stacks.take("worker 0")
    assert "first" in text
    assert len(text) == BYTES_MAX
