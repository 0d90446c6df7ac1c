"""The life cycle of one slot: which state it is in and what has to be done next.

EMPTY → STARTING → READY → DRAINING → EMPTY. A child that exits without being asked to goes through
BACKOFF to its next incarnation, or to FAILED if it can never start. Workers and services follow the
same rules.

Pure: each function takes a slot and the time and returns the new slot. The arbiter carries out the
`Action` that is returned with it. Only an exit ends a living state.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from supervisor.core.restart_policy import DRAIN_TIMEOUT, Exit, ExitKind, History, classify, plan

#: Time between the stack dump and SIGKILL.
DUMP_S = 0.25
#: SIGKILL is repeated after this time, because a process in an uninterruptible system call dies late.
KILL_AGAIN_S = 1.0
#: How often a slot that is no longer wanted is restarted to hand over its messages, if its children keep failing.
HANDOVER_ATTEMPTS_MAX = 3


class State(Enum):
    """The state of a slot, as `status` shows it."""

    EMPTY = "EMPTY"
    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    BACKOFF = "BACKOFF"
    FAILED = "FAILED"


#: The states in which the slot has a process.
LIVING = frozenset({State.STARTING, State.READY, State.DRAINING})


class Action(Enum):
    """What the arbiter has to do for a slot."""

    NONE = "none"
    START = "start"
    TERMINATE = "terminate"
    #: Ask the child for a stack dump.
    DUMP = "dump"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What is known about a living child."""

    ready: bool = True
    #: Seconds since the last beat; 0 if the child has not started to beat.
    silent_s: float = 0.0
    #: The child is still busy after the deadline that it set itself.
    overdue: bool = False
    #: The child takes nothing new and ends by itself.
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class ExitNotes:
    """What a child recorded in shared memory before it exited."""

    #: The child recorded this exit code itself, so it does not come from a handler that called `os._exit`.
    announced: bool = True
    #: Messages completed by this incarnation.
    done: int = 0
    #: The child has drained before it exited.
    drained: bool = False


NO_EXIT_NOTES = ExitNotes()


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits in seconds."""

    boot_s: float
    beat_s: float
    drain_s: float


@dataclass(frozen=True, slots=True)
class Slot:
    """A numbered place for a child process. Times are monotonic seconds."""

    number: int
    state: State = State.EMPTY
    #: The slot should have a child.
    wanted: bool = True
    pid: int = 0
    incarnation: int = 0
    #: Starts after the first one.
    restarts: int = 0
    spawned_s: float = 0.0
    ready_s: float | None = None
    drain_until_s: float = math.inf
    #: Why the child is being killed (empty: it is not), and when SIGKILL is due.
    kill_reason: str = ""
    kill_due_s: float = math.inf
    next_start_s: float = 0.0
    #: Children that failed to hand over since the slot stopped being wanted.
    handover_attempts: int = 0
    history: History = field(default_factory=History)
    last_exit: Exit | None = None

    @property
    def living(self) -> bool:
        """Whether the slot has a process."""
        return self.state in LIVING


def spawned(slot: Slot, pid: int, now_s: float) -> Slot:
    """Record a new incarnation."""
    return replace(
        slot,
        state=State.STARTING,
        pid=pid,
        restarts=slot.restarts + (1 if slot.incarnation else 0),
        incarnation=slot.incarnation + 1,
        spawned_s=now_s,
        ready_s=None,
        drain_until_s=math.inf,
        kill_reason="",
        kill_due_s=math.inf,
    )


def drain(slot: Slot, until_s: float) -> tuple[Slot, Action]:
    """Ask the child to finish and exit by `until_s`; an unwanted slot without a child becomes EMPTY.

    A child that is already draining gets no second signal, only the earlier of both deadlines.
    """
    if slot.state is State.DRAINING:
        return replace(slot, drain_until_s=min(until_s, slot.drain_until_s)), Action.NONE
    if slot.living:
        return replace(slot, state=State.DRAINING, drain_until_s=until_s), Action.TERMINATE
    return (slot if slot.wanted else replace(slot, state=State.EMPTY)), Action.NONE


def due_now(slot: Slot, now_s: float) -> Slot:
    """Make a wanted slot without a child start at the next check, even if it is FAILED or in BACKOFF."""
    if slot.living or not slot.wanted:
        return slot
    return replace(slot, state=State.BACKOFF, next_start_s=now_s)


def kill(slot: Slot, reason: str, now_s: float, *, dump: bool) -> tuple[Slot, Action]:
    """Kill the child at once or, with `dump`, shortly after asking it for a stack dump."""
    if not slot.living or slot.kill_reason:
        return slot, Action.NONE
    if dump:
        return replace(slot, kill_reason=reason, kill_due_s=now_s + DUMP_S), Action.DUMP
    return replace(slot, kill_reason=reason, kill_due_s=now_s + KILL_AGAIN_S), Action.KILL


def advance(slot: Slot, heartbeat: Heartbeat, limits: Limits, now_s: float) -> tuple[Slot, Action]:
    """Apply the time and the child's heartbeat to the slot."""
    if not slot.living:
        if slot.state is State.EMPTY and slot.wanted:
            # The arbiter may delay the start. The slot then shows as BACKOFF and asks again.
            slot = replace(slot, state=State.BACKOFF, next_start_s=now_s)
        due = slot.state is State.BACKOFF and now_s >= slot.next_start_s
        return slot, Action.START if due else Action.NONE
    if slot.kill_reason:
        return _kill_when_due(slot, now_s)
    reason = _reason_to_kill(slot, heartbeat, limits, now_s)
    if reason:
        return kill(slot, reason, now_s, dump=reason != DRAIN_TIMEOUT)
    if slot.state is State.STARTING and heartbeat.ready:
        slot = replace(slot, state=State.READY, ready_s=now_s)
    if not slot.wanted and slot.state is State.READY:
        return drain(slot, now_s + limits.drain_s)
    if heartbeat.leaving and slot.state is State.READY:  # unasked: a signal from elsewhere
        slot = replace(slot, state=State.DRAINING, drain_until_s=now_s + limits.drain_s)
    return slot, Action.NONE


def _kill_when_due(slot: Slot, now_s: float) -> tuple[Slot, Action]:
    if now_s < slot.kill_due_s:
        return slot, Action.NONE
    return replace(slot, kill_due_s=now_s + KILL_AGAIN_S), Action.KILL


def _reason_to_kill(slot: Slot, heartbeat: Heartbeat, limits: Limits, now_s: float) -> str:
    if slot.state is State.DRAINING and now_s >= slot.drain_until_s:
        return DRAIN_TIMEOUT
    if slot.state is State.STARTING and not heartbeat.ready and now_s >= slot.spawned_s + limits.boot_s:
        return "boot"
    if heartbeat.silent_s > limits.beat_s:
        return "hung"
    return "deadline" if heartbeat.overdue else ""


def postpone(slot: Slot, by_s: float) -> Slot:
    """Move the slot's deadlines back, after the arbiter itself stood still for `by_s`."""
    starting = slot.state is State.STARTING
    return replace(
        slot,
        spawned_s=slot.spawned_s + (by_s if starting else 0.0),
        drain_until_s=slot.drain_until_s + by_s,
    )


def due_s(slot: Slot, limits: Limits) -> float:
    """Return the latest time at which `advance` must be called again; may be infinity."""
    if slot.state is State.BACKOFF:
        return slot.next_start_s
    if not slot.living:
        return math.inf
    if slot.kill_reason:
        return slot.kill_due_s
    if slot.state is State.STARTING:
        return min(slot.drain_until_s, slot.spawned_s + limits.boot_s)
    return slot.drain_until_s


def exited(
    slot: Slot,
    status: tuple[int | None, int | None],
    now_s: float,
    random: Callable[[], float],
    *,
    burst: bool = False,
    final: bool = False,
    notes: ExitNotes = NO_EXIT_NOTES,
) -> Slot:
    """Record that the child has exited with `status` = (exit code, signal).

    A slot that is no longer wanted starts once more if its child crashed or missed its drain deadline, so
    that a successor hands over the child's messages. `final` prevents that: no slot could take them.
    """
    code, signal = status
    draining = slot.state is State.DRAINING or not slot.wanted or notes.drained
    kind, reason = classify(
        code, signal, draining=draining, kill_reason=slot.kill_reason, burst=burst, announced=notes.announced
    )
    uptime_s = now_s - slot.spawned_s
    last_exit = Exit(kind, reason, code, signal, uptime_s, notes.done)
    ready_for_s = 0.0 if slot.ready_s is None else now_s - slot.ready_s
    history, wait_s = plan(slot.history, last_exit, ready_for_s, random)
    slot = replace(slot, pid=0, ready_s=None, last_exit=last_exit, history=history, kill_reason="", kill_due_s=math.inf)
    slot = replace(slot, drain_until_s=math.inf, next_start_s=now_s + wait_s)
    if final or (kind is ExitKind.DONE and not draining):
        return replace(slot, state=State.EMPTY, wanted=False)
    if not slot.wanted:
        return _after_exit_unwanted(slot, last_exit)
    return replace(slot, state=State.FAILED if kind is ExitKind.CONFIG else State.BACKOFF, handover_attempts=0)


def _after_exit_unwanted(slot: Slot, last_exit: Exit) -> Slot:
    """End the slot once its child has handed over, or after too many failed attempts.

    A child that exits because a dependency is down does not count as a failed attempt.
    """
    attempts = slot.handover_attempts + (last_exit.kind is not ExitKind.DEPENDENCY)
    handed_over = last_exit.kind is ExitKind.DONE and last_exit.reason != DRAIN_TIMEOUT
    if handed_over or last_exit.kind is ExitKind.CONFIG or attempts > HANDOVER_ATTEMPTS_MAX:
        return replace(slot, state=State.EMPTY, handover_attempts=0)
    return replace(slot, state=State.BACKOFF, handover_attempts=attempts)


def not_spawned(slot: Slot, now_s: float, random: Callable[[], float]) -> Slot:
    """Record that the fork itself failed (no memory, too many processes); retried with the backoff of a crash."""
    last_exit = Exit(ExitKind.CRASH, "fork", None, None, 0.0)
    history = replace(slot.history, crashes=max(1, slot.history.crashes))
    history, wait_s = plan(history, last_exit, 0.0, random)
    return replace(slot, state=State.BACKOFF, pid=0, last_exit=last_exit, history=history, next_start_s=now_s + wait_s)
