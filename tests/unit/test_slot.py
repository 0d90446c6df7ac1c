"""A slot's life under any sequence of events: nothing ends it but an exit, and nothing leaves it stuck."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor.core import slot as slots
from supervisor.core.restart_policy import DRAIN_TIMEOUT, FORGIVEN_AFTER_S, YOUNG_S, ExitKind
from supervisor.core.slot import (
    DUMP_S,
    HANDOVER_ATTEMPTS_MAX,
    KILL_AGAIN_S,
    Action,
    ExitNotes,
    Heartbeat,
    Limits,
    Slot,
    State,
)
from supervisor.errors import EXIT_FAILED, EXIT_HANDLERS, EXIT_OK, WORKER_CONFIG, WORKER_PLANNED, WORKER_TEMPFAIL

LIMITS = Limits(boot_s=15.0, beat_s=5.0, drain_s=25.0)
SIGTERM, SIGKILL, SIGSEGV = 15, 9, 11
#: How a process can end: (exit code, signal). The last one is an unknown end.
STATUSES = (
    *(
        (code, None)
        for code in (EXIT_OK, EXIT_FAILED, EXIT_HANDLERS, WORKER_TEMPFAIL, WORKER_CONFIG, WORKER_PLANNED, 255)
    ),
    *((None, signal) for signal in (SIGTERM, SIGKILL, SIGSEGV)),
    (None, None),
)
Times = st.one_of(st.sampled_from([0.0, 0.01, 0.25, 1.0, YOUNG_S, FORGIVEN_AFTER_S]), st.floats(0, 100))
Heartbeats = st.builds(
    Heartbeat, ready=st.booleans(), silent_s=st.sampled_from([0.0, 5.0, 5.01]), overdue=st.booleans()
)


def backoff_bounds(tries: int) -> tuple[float, float]:
    """Return the limits of the contract: 0.1, 0.2, 0.4 ... 30 s, each ±20 %."""
    plain = min(30.0, 0.1 * 2 ** (tries - 1))
    return 0.8 * plain, 1.2 * plain


class Life(RuleBasedStateMachine):
    """Plays the arbiter, the clock and the child, and keeps its own count of expected waits."""

    @initialize(burst=st.booleans(), chance=st.floats(0, 0.999))
    def begin(self, burst: bool, chance: float) -> None:
        self.slot, self.now_s, self.pid = Slot(0), 1000.0, 100
        self.burst, self.chance = burst, chance
        self.alive = False
        self.crashes = self.misses = 0

    def keeps_its_child(self, before: Slot) -> None:
        if before.living:
            assert (self.slot.living, self.slot.pid) == (True, before.pid), "only an exit ends a living state"
            assert self.slot.incarnation == before.incarnation

    def act(self, action: Action, *, start: str = "spawn") -> None:
        """Act like the arbiter, which may fail to fork or delay the start."""
        if action is not Action.START:
            return
        assert not self.alive, "two processes in one slot"
        if start == "spawn":
            self.pid += 1
            self.slot = slots.spawned(self.slot, self.pid, self.now_s)
            self.alive = True
        elif start == "fail":
            self.slot = slots.not_spawned(self.slot, self.now_s, lambda: self.chance)
            self.crashes, self.misses = max(1, self.crashes) + 1, 0
            self.waits(backoff_bounds(self.crashes - 1))

    def waits(self, bounds: tuple[float, float]) -> None:
        assert self.slot.state is State.BACKOFF
        wait_s = self.slot.next_start_s - self.now_s
        assert bounds[0] - 1e-9 <= wait_s <= bounds[1] + 1e-9

    @rule(by_s=Times)
    def time_passes(self, by_s: float) -> None:
        self.now_s += by_s

    @rule(heartbeat=Heartbeats, start=st.sampled_from(["spawn", "spawn", "spawn", "fail", "hold"]))
    def look(self, heartbeat: Heartbeat, start: str) -> None:
        before = self.slot
        self.slot, action = slots.advance(before, heartbeat, LIMITS, self.now_s)
        self.keeps_its_child(before)
        if before.kill_reason:
            assert action is (Action.KILL if self.now_s >= before.kill_due_s else Action.NONE)
        elif before.state is State.DRAINING and self.now_s >= before.drain_until_s:
            assert (action, self.slot.kill_reason) == (Action.KILL, DRAIN_TIMEOUT)
        elif before.living and (heartbeat.overdue or heartbeat.silent_s > LIMITS.beat_s):
            assert action is Action.DUMP
            assert self.slot.kill_reason
        elif self.slot.state is State.READY:
            assert self.slot.wanted, "a READY child of an unwanted slot is drained"
        elif not before.living and before.wanted:
            assert action is Action.START or before.state is State.FAILED or self.now_s < before.next_start_s
        self.act(action, start=start)
        if self.slot.ready_s not in (None, before.ready_s):
            assert (self.slot.ready_s, before.state) == (self.now_s, State.STARTING)
        if self.slot.wanted and not self.alive and self.slot.state is not State.FAILED:
            assert slots.due_s(self.slot, LIMITS) < math.inf, "a delayed start is requested again"

    @precondition(lambda self: max(self.now_s, slots.due_s(self.slot, LIMITS)) < math.inf)
    @rule()
    def sleep_until_due(self) -> None:
        """Sleep until something is due; if nothing had to be done then, the arbiter would spin."""
        self.now_s = max(self.now_s, slots.due_s(self.slot, LIMITS))
        before = self.slot
        self.slot, action = slots.advance(before, Heartbeat(ready=False), LIMITS, self.now_s)
        self.keeps_its_child(before)
        assert action is not Action.NONE
        self.act(action)

    @rule(within_s=Times)
    def drain(self, within_s: float) -> None:
        before = self.slot
        self.slot, action = slots.drain(before, self.now_s + within_s)
        self.keeps_its_child(before)
        assert action is (Action.TERMINATE if before.state in (State.STARTING, State.READY) else Action.NONE), (
            "one SIGTERM, and only to a child that exists"
        )
        if before.living:
            assert self.slot.state is State.DRAINING
            assert self.slot.drain_until_s == min(before.drain_until_s, self.now_s + within_s)
        elif not before.wanted:
            assert self.slot.state is State.EMPTY, "nothing to wait for"

    @rule(dump=st.booleans())
    def kill(self, dump: bool) -> None:
        before = self.slot
        self.slot, action = slots.kill(before, "quick", self.now_s, dump=dump)
        self.keeps_its_child(before)
        if before.living and not before.kill_reason:
            assert action is (Action.DUMP if dump else Action.KILL)
            assert self.slot.kill_due_s == self.now_s + (DUMP_S if dump else KILL_AGAIN_S)
        else:
            assert (self.slot, action) == (before, Action.NONE)

    @rule(by_s=Times)
    def freeze(self, by_s: float) -> None:
        before, self.slot = self.slot, slots.postpone(self.slot, by_s)
        self.keeps_its_child(before)
        gets_back_s = 0.0 if before.kill_reason or not before.living else by_s
        assert slots.due_s(self.slot, LIMITS) == pytest.approx(slots.due_s(before, LIMITS) + gets_back_s)

    @rule(wanted=st.booleans())
    def scale(self, wanted: bool) -> None:
        gives_up = not wanted and self.slot.state is State.FAILED
        self.slot = replace(self.slot, wanted=wanted, state=State.EMPTY if gives_up else self.slot.state)

    @precondition(lambda self: self.alive)
    @rule(
        status=st.sampled_from(STATUSES), final=st.booleans(), announced=st.booleans(), done=st.sampled_from([0, 0, 1])
    )
    def exit(self, status: tuple[int | None, int | None], final: bool, announced: bool = True, done: int = 0) -> None:
        before, self.alive = self.slot, False
        final, announced = final and not before.wanted, announced or status[0] is None
        self.slot = slots.exited(
            before,
            status,
            self.now_s,
            lambda: self.chance,
            burst=self.burst,
            final=final,
            notes=ExitNotes(announced, done),
        )
        left = self.slot.last_exit
        assert left is not None
        assert (left.code, left.signal) == status
        if before.kill_reason:
            assert left.reason == before.kill_reason
        elif not announced:
            assert left.kind is ExitKind.CRASH, "a handler ended the process"
        elif before.state is State.DRAINING or not before.wanted:
            assert (left.kind is ExitKind.DONE) == (status in ((EXIT_OK, None), (None, SIGTERM)))
        if done or (before.ready_s is not None and self.now_s - before.ready_s >= FORGIVEN_AFTER_S):
            self.crashes = self.misses = 0
        wait = self.promised_wait(left.kind, self.now_s - before.spawned_s)
        assert not final or self.slot.state is State.EMPTY
        assert (self.slot.state is State.FAILED) == (left.kind is ExitKind.CONFIG and before.wanted)
        if before.wanted and self.slot.state is State.EMPTY:
            assert (left.kind, self.burst) == (ExitKind.DONE, True), "only a burst is done without being asked"
        if self.slot.state is State.BACKOFF:
            self.waits(wait)

    @precondition(lambda self: not self.alive and self.slot.wanted and self.slot.state is not State.FAILED)
    @rule(ready=st.booleans(), lived_s=Times, drained=st.booleans(), status=st.sampled_from(STATUSES[:5]))
    def live(self, ready: bool, lived_s: float, drained: bool, status: tuple[int | None, int | None]) -> None:
        """Run a whole incarnation, so that long sequences of them occur."""
        self.now_s = max(self.now_s, self.slot.next_start_s)
        self.look(Heartbeat(ready=False), "spawn")
        self.look(Heartbeat(ready=ready), "spawn")
        self.time_passes(lived_s)
        if drained:
            self.drain(LIMITS.drain_s)
        self.exit(status, final=False)

    def promised_wait(self, kind: ExitKind, uptime_s: float) -> tuple[float, float]:
        if kind is ExitKind.DEPENDENCY:
            self.misses += 1
            return backoff_bounds(self.misses)
        self.misses = 0
        if kind is ExitKind.CRASH and uptime_s < YOUNG_S:
            self.crashes += 1
            return backoff_bounds(self.crashes - 1) if self.crashes > 1 else (0.0, 0.0)
        return 0.0, 0.0

    @invariant()
    def is_sound(self) -> None:
        slot = self.slot
        assert slot.living == self.alive == bool(slot.pid)
        if slot.kill_reason:
            assert slot.living
            assert slot.kill_due_s <= self.now_s + KILL_AGAIN_S
        if slot.state is State.DRAINING:
            assert slots.due_s(slot, LIMITS) < math.inf, "a drain ends"
        if slot.state is State.FAILED:
            assert slot.last_exit is not None
            assert slot.last_exit.kind is ExitKind.CONFIG
            assert slot.wanted
        if not slot.living:
            assert (slot.ready_s, slot.kill_reason) == (None, "")
            assert slot.kill_due_s == slot.drain_until_s == math.inf

    def teardown(self) -> None:
        """From any state, an unwanted slot with a child that only obeys SIGKILL becomes EMPTY."""
        if not hasattr(self, "slot"):
            return
        self.scale(wanted=False)
        assert ends_empty(self.slot, self.now_s, iter(["stubborn"] * 10)) <= 1 + HANDOVER_ATTEMPTS_MAX


Life.TestCase.settings = settings(max_examples=150, stateful_step_count=30)
TestLife = Life.TestCase


#: How a child reacts to SIGTERM: (exit code, signal) and after how long. All others wait for SIGKILL.
MANNERS = {
    "obeys": ((EXIT_OK, None), 0.0),
    "crashes": ((EXIT_FAILED, None), 0.3),
    "fails late": ((None, SIGSEGV), YOUNG_S),
    "gives up": ((WORKER_PLANNED, None), 0.0),
}
LOSERS = ["crashes", "fails late", "gives up", "stubborn", "never ready"]


def ends_empty(slot: Slot, now_s: float, manners: Iterator[str]) -> int:
    """Advance from one due time to the next until the slot is EMPTY; return how many children that took."""
    children, manner = int(slot.living), next(manners)
    for _ in range(200):
        if slot.state is State.EMPTY:
            return children
        slot, action = slots.advance(slot, Heartbeat(ready=manner != "never ready"), LIMITS, now_s)
        if action is Action.START:
            slot, children, manner = slots.spawned(slot, 7, now_s), children + 1, next(manners)
        elif action is Action.TERMINATE and manner in MANNERS:
            status, after_s = MANNERS[manner]
            now_s += after_s
            slot = slots.exited(slot, status, now_s, lambda: 0.5)
        elif action is Action.KILL:
            slot = slots.exited(slot, (None, SIGKILL), now_s, lambda: 0.5)
        else:
            now_s = max(now_s, slots.due_s(slot, LIMITS))
            assert now_s < math.inf, f"it waits for nothing: {slot}"
    raise AssertionError(f"never EMPTY: {slot}")


@given(st.sampled_from(["obeys", *LOSERS]), st.lists(st.sampled_from(LOSERS), min_size=9, max_size=9), st.booleans())
def test_a_slot_that_is_not_wanted_ends_empty_whatever_its_children_do(
    first: str, others: list[str], ready: bool
) -> None:
    slot = slots.spawned(Slot(0), 7, 0.0)
    if ready:
        slot, _ = slots.advance(slot, Heartbeat(), LIMITS, 0.1)
    children = ends_empty(replace(slot, wanted=False), 0.1, iter([first, *others]))
    assert children == (1 if first == "obeys" else 1 + HANDOVER_ATTEMPTS_MAX), "the child's messages are handed over"
