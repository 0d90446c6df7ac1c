"""One slot's life: which state it is in, and what is to be done now.

EMPTY → STARTING → READY → DRAINING → EMPTY; a child that leaves unasked goes through BACKOFF to its next
incarnation, or to FAILED when it can never start. Workers and services live by the same rules.

Pure: every function takes the slot and the time and returns the slot as it is then. What has to be
done about it (`Action`) is the arbiter's work. Only an exit ends a living state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from supervisor.core.restart import DRAIN_TIMEOUT, Exit, ExitKind, History, classify, plan

if TYPE_CHECKING:
    from collections.abc import Callable

#: Between the stack dump and SIGKILL.
DUMP_S = 0.25
#: SIGKILL is sent again after this long; a process in an uninterruptible call takes its time.
KILL_AGAIN_S = 1.0
#: A slot that shall leave, but loses its child before it has handed over, is started again so often.
HANDOVER_ATTEMPTS_MAX = 3


class State(Enum):
    """What `status` shows of a slot."""

    EMPTY = "EMPTY"
    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    BACKOFF = "BACKOFF"
    FAILED = "FAILED"


#: There is a process.
LIVING = frozenset({State.STARTING, State.READY, State.DRAINING})


class Action(Enum):
    """What the arbiter has to do for a slot."""

    NONE = "none"
    START = "start"
    TERMINATE = "terminate"
    #: Have it write its stacks.
    DUMP = "dump"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What is seen of a living child."""

    ready: bool = True
    #: Since its last beat; 0 when it has not begun to beat.
    quiet_s: float = 0.0
    #: The deadline of what it is doing has passed.
    overdue: bool = False


@dataclass(frozen=True, slots=True)
class ExitNotes:
    """What a child has noted before it left."""

    #: That it leaves with this exit code: it is the child's own word, and not that of a handler's `os._exit`.
    announced: bool = True
    #: How many messages it had done.
    done: int = 0


NO_EXIT_NOTES = ExitNotes()


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds."""

    boot_s: float
    beat_s: float
    drain_s: float


@dataclass(frozen=True, slots=True)
class Slot:
    """A numbered place for a child. Times are monotonic seconds."""

    number: int
    state: State = State.EMPTY
    #: There shall be a child in it.
    wanted: bool = True
    pid: int = 0
    incarnation: int = 0
    #: Starts after the first.
    restarts: int = 0
    spawned_s: float = 0.0
    ready_s: float | None = None
    drain_until_s: float = math.inf
    #: Why it is being killed, and when SIGKILL is due.
    kill_reason: str = ""
    kill_due_s: float = math.inf
    next_start_s: float = 0.0
    #: Children that it lost since it is not wanted any more.
    handover_attempts: int = 0
    history: History = field(default_factory=History)
    last_exit: Exit | None = None

    @property
    def living(self) -> bool:
        """There is a process."""
        return self.state in LIVING


def spawned(slot: Slot, pid: int, now_s: float) -> Slot:
    """A new incarnation was started."""
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
    """Have it finish and leave by then; a slot without a child just waits no longer.

    A child that drains already is not told twice, but must be done by the earlier of both times.
    """
    if slot.state is State.DRAINING:
        return replace(slot, drain_until_s=min(until_s, slot.drain_until_s)), Action.NONE
    if slot.living:
        return replace(slot, state=State.DRAINING, drain_until_s=until_s), Action.TERMINATE
    return (slot if slot.wanted else replace(slot, state=State.EMPTY)), Action.NONE


def due_now(slot: Slot, now_s: float) -> Slot:
    """Without a child, and wanted: it starts at the next look, also when it has FAILED or waits for long."""
    if slot.living or not slot.wanted:
        return slot
    return replace(slot, state=State.BACKOFF, next_start_s=now_s)


def kill(slot: Slot, reason: str, now_s: float, *, dump: bool) -> tuple[Slot, Action]:
    """It will be killed: at once, or shortly after it was asked for its stacks."""
    if not slot.living or slot.kill_reason:
        return slot, Action.NONE
    if dump:
        return replace(slot, kill_reason=reason, kill_due_s=now_s + DUMP_S), Action.DUMP
    return replace(slot, kill_reason=reason, kill_due_s=now_s + KILL_AGAIN_S), Action.KILL


def advance(slot: Slot, sign: Heartbeat, limits: Limits, now_s: float) -> tuple[Slot, Action]:
    """What time and the child's signs of life make of the slot."""
    if not slot.living:
        if slot.state is State.EMPTY and slot.wanted:
            # The arbiter may hold the start back; then the slot is seen to wait, and asks again.
            slot = replace(slot, state=State.BACKOFF, next_start_s=now_s)
        due = slot.state is State.BACKOFF and now_s >= slot.next_start_s
        return slot, Action.START if due else Action.NONE
    if slot.kill_reason:
        return _kill_when_due(slot, now_s)
    reason = _wrong(slot, sign, limits, now_s)
    if reason:
        return kill(slot, reason, now_s, dump=reason != DRAIN_TIMEOUT)
    if slot.state is State.STARTING and sign.ready:
        slot = replace(slot, state=State.READY, ready_s=now_s)
    if not slot.wanted and slot.state is State.READY:
        return drain(slot, now_s + limits.drain_s)
    return slot, Action.NONE


def _kill_when_due(slot: Slot, now_s: float) -> tuple[Slot, Action]:
    if now_s < slot.kill_due_s:
        return slot, Action.NONE
    return replace(slot, kill_due_s=now_s + KILL_AGAIN_S), Action.KILL


def _wrong(slot: Slot, sign: Heartbeat, limits: Limits, now_s: float) -> str:
    """Why the child must go, or nothing."""
    if slot.state is State.DRAINING and now_s >= slot.drain_until_s:
        return DRAIN_TIMEOUT
    if slot.state is State.STARTING and not sign.ready and now_s >= slot.spawned_s + limits.boot_s:
        return "boot"
    if sign.quiet_s > limits.beat_s:
        return "hung"
    return "deadline" if sign.overdue else ""


def postpone(slot: Slot, by_s: float) -> Slot:
    """Time stood still for everybody: what runs out does so later."""
    starting = slot.state is State.STARTING
    return replace(
        slot,
        spawned_s=slot.spawned_s + (by_s if starting else 0.0),
        drain_until_s=slot.drain_until_s + by_s,
    )


def due_s(slot: Slot, limits: Limits) -> float:
    """When `advance` has something to do at the latest, whatever the child does; may be infinity."""
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
    """Its process is gone with (exit code, signal): where the slot goes from here.

    A slot that is no longer wanted, but whose child crashed or did not drain in time, starts once more
    unless `final`: what the child had in hand is handed over by a successor, or by nobody. `notes` are
    the child's.
    """
    code, signal = status
    told = slot.state is State.DRAINING or not slot.wanted
    kind, reason = classify(
        code, signal, told=told, kill_reason=slot.kill_reason, burst=burst, announced=notes.announced
    )
    uptime_s = now_s - slot.spawned_s
    left = Exit(kind, reason, code, signal, uptime_s, notes.done)
    ready_for_s = 0.0 if slot.ready_s is None else now_s - slot.ready_s
    history, wait_s = plan(slot.history, left, ready_for_s, random)
    slot = replace(slot, pid=0, ready_s=None, last_exit=left, history=history, kill_reason="", kill_due_s=math.inf)
    slot = replace(slot, drain_until_s=math.inf, next_start_s=now_s + wait_s)
    if final or (kind is ExitKind.DONE and not told):
        return replace(slot, state=State.EMPTY, wanted=False)
    return _wanted_next(slot, kind) if slot.wanted else _unwanted_next(slot, left)


def _wanted_next(slot: Slot, kind: ExitKind) -> Slot:
    return replace(slot, state=State.FAILED if kind is ExitKind.CONFIG else State.BACKOFF, handover_attempts=0)


def _unwanted_next(slot: Slot, left: Exit) -> Slot:
    """It is over when the child has handed over, or when its successors have failed to as often as may be.

    One that only lacks a dependency did not fail.
    """
    tries = slot.handover_attempts + (left.kind is not ExitKind.DEPENDENCY)
    handed_over = left.kind is ExitKind.DONE and left.reason != DRAIN_TIMEOUT
    if handed_over or left.kind is ExitKind.CONFIG or tries > HANDOVER_ATTEMPTS_MAX:
        return replace(slot, state=State.EMPTY, handover_attempts=0)
    return replace(slot, state=State.BACKOFF, handover_attempts=tries)


def not_spawned(slot: Slot, now_s: float, random: Callable[[], float]) -> Slot:
    """The process could not even be made (no memory, too many processes): as a crash, after a wait."""
    left = Exit(ExitKind.CRASH, "fork", None, None, 0.0)
    history = replace(slot.history, crashes=max(1, slot.history.crashes))
    history, wait_s = plan(history, left, 0.0, random)
    return replace(slot, state=State.BACKOFF, pid=0, last_exit=left, history=history, next_start_s=now_s + wait_s)
