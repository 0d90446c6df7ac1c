"""When a child that left is started again: at once, after a backoff, or only as the pool's canary.

1. What an exit means (`classify`), and how long its slot waits (`plan`).
2. The pool's breaker: when children crash faster than one slot's backoff explains, only one canary at
   a time is tried, until one stays up.

Pure: time and chance are handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from supervisor.core.backoff import backoff_s
from supervisor.errors import EXIT_OK, WORKER_CONFIG, WORKER_PLANNED, WORKER_TEMPFAIL

if TYPE_CHECKING:
    from collections.abc import Callable

#: A crash within this time of its start counts as "still crashing".
YOUNG_S = 10.0
#: READY for this long, and the crashes before are forgotten.
FORGIVEN_AFTER_S = 60.0
BACKOFF_BASE_S = 0.1
BACKOFF_MAX_S = 30.0
#: The breaker counts the crashes of this long.
WINDOW_S = 60.0
CRASHES_MIN = 10
CRASHES_PER_WORKER = 3
#: So many messages done pay for one crash, which the breaker then does not count: a pool that gets on with its work
#: is in no crash loop, even if one message in twenty kills.
DONE_PER_CRASH = 5
#: What the pool may have in hand to pay with, for each of its workers: the deaths that one message can cause, one with
#: others in hand and three alone. So a pool that begins to crash after millions of good messages is stopped soon.
CREDIT_PER_WORKER = 4
#: How long the breaker waits before each canary; the last one repeats.
CANARY_AFTER_S = (5.0, 10.0, 20.0, 40.0, 60.0)
#: A canary that is READY for this long closes the breaker.
CANARY_PROVES_S = 30.0
#: Nobody crashed and nobody was tried for this long: then none waits to be tried, for whom it would stay open.
CALM_S = CANARY_AFTER_S[-1] + CANARY_PROVES_S
#: Why a child is killed that has not drained in time: no fault that a restart could mend.
DRAIN_TIMEOUT = "drain"
#: The signal number of SIGTERM, which POSIX fixes.
SIGTERM = 15


class ExitKind(Enum):
    """What an exit means for the slot."""

    #: It was told to leave, or has done all that there was: no fault.
    DONE = "done"
    #: It left to be replaced.
    PLANNED = "planned"
    #: It can't ever start like this.
    CONFIG = "config"
    #: Something that it needs is missing; no fault of its own.
    DEPENDENCY = "dependency"
    CRASH = "crash"


_MEANINGS = {
    WORKER_PLANNED: (ExitKind.PLANNED, "recycled"),
    WORKER_CONFIG: (ExitKind.CONFIG, "config"),
    WORKER_TEMPFAIL: (ExitKind.DEPENDENCY, "dependency"),
}


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child left."""

    kind: ExitKind
    #: One word for logs and status: drained, done, recycled, config, dependency, exit, signal, hung, deadline, boot...
    reason: str
    #: The exit code, None when a signal ended it.
    code: int | None
    signal: int | None
    uptime_s: float
    #: Messages that it had done.
    done: int = 0


def classify(
    code: int | None, signal: int | None, *, told: bool, kill_reason: str, burst: bool, announced: bool = True
) -> tuple[ExitKind, str]:
    """What an exit means, and the word for it.

    `told`: it was asked to drain. `kill_reason`: why the arbiter killed it, else empty. `announced`: the exit code
    is the child's own word, and not that of a handler that has called `os._exit`. In a burst, exit code 0
    means that nothing is left to do.
    """
    if kill_reason:
        return (ExitKind.DONE if kill_reason == DRAIN_TIMEOUT else ExitKind.CRASH), kill_reason
    if code is not None and not announced:
        return ExitKind.CRASH, "exit"
    # SIGTERM between fork and the worker's own handlers ends a worker that has nothing in hand yet.
    if told and (code == EXIT_OK or signal == SIGTERM):
        return ExitKind.DONE, "drained"
    if code == EXIT_OK and burst:
        return ExitKind.DONE, "done"
    if signal is not None or code is None:
        return ExitKind.CRASH, "signal"
    return _MEANINGS.get(code, (ExitKind.CRASH, "exit"))


@dataclass(frozen=True, slots=True)
class History:
    """What a slot's earlier exits leave behind."""

    #: Young crashes in a row.
    crashes: int = 0
    #: Exits in a row for want of a dependency.
    misses: int = 0


def plan(history: History, left: Exit, ready_for_s: float, random: Callable[[], float]) -> tuple[History, float]:
    """The slot's new history and how long it waits before its next start, in seconds.

    Who has done messages is in no crash loop: what ended it may have been one bad message among good ones.
    """
    if ready_for_s >= FORGIVEN_AFTER_S or left.done > 0:
        history = History()
    if left.kind is ExitKind.DEPENDENCY:
        misses = history.misses + 1
        return replace(history, misses=misses), backoff_s(misses, BACKOFF_BASE_S, BACKOFF_MAX_S, random)
    if left.kind is not ExitKind.CRASH:
        return replace(history, misses=0), 0.0
    if left.uptime_s >= YOUNG_S:
        return replace(history, misses=0), 0.0
    crashes = history.crashes + 1
    wait_s = 0.0 if crashes == 1 else backoff_s(crashes - 1, BACKOFF_BASE_S, BACKOFF_MAX_S, random)
    return replace(history, crashes=crashes, misses=0), min(wait_s, BACKOFF_MAX_S)


@dataclass(frozen=True, slots=True)
class Breaker:
    """The whole pool's guard against a crash loop that no single slot shows."""

    #: When workers crashed, within the last `WINDOW_S`, without having paid for it.
    crashed_s: tuple[float, ...] = ()
    is_open: bool = False
    #: Canaries that crashed since it opened.
    lost: int = 0
    #: The slot that is being tried.
    canary: int | None = None
    next_canary_s: float = 0.0
    #: A slot that was READY when the calm began, and for how long it had been.
    calm: tuple[int, float] | None = None
    #: Crashes that are paid for already, by whichever workers: many bad messages may be in the hands of one.
    credit: int = 0
    #: The messages, of all that the pool has done, which have paid.
    done: int = 0


def crashed(breaker: Breaker, slot: int, workers: int, now_s: float, done: int) -> Breaker:
    """Count a crash that is not paid for; may open the breaker, or put off its next canary.

    `done`: how many messages the pool has done so far.
    """
    earned = max(0, done - breaker.done) // DONE_PER_CRASH
    credit = min(CREDIT_PER_WORKER * workers, breaker.credit + earned)
    breaker = replace(breaker, credit=credit, done=breaker.done + earned * DONE_PER_CRASH)
    if credit:
        return gone(replace(breaker, credit=credit - 1), slot)
    recent = tuple(at_s for at_s in breaker.crashed_s if at_s > now_s - WINDOW_S)
    allowed = max(CRASHES_MIN, CRASHES_PER_WORKER * workers)
    # One more than is allowed says all; a pool that crashes for days needs no longer list.
    recent = (*recent, now_s)[-(allowed + 1) :]
    breaker = replace(breaker, crashed_s=recent, calm=None)
    if not breaker.is_open:
        if len(recent) <= allowed:
            return breaker
        return replace(breaker, is_open=True, lost=0, canary=None, next_canary_s=now_s + CANARY_AFTER_S[0])
    if breaker.canary != slot:
        return breaker
    lost = breaker.lost + 1
    wait_s = CANARY_AFTER_S[min(lost, len(CANARY_AFTER_S) - 1)]
    return replace(breaker, lost=lost, canary=None, next_canary_s=now_s + wait_s)


def permitted_s(breaker: Breaker, slot: int, now_s: float) -> float:
    """When this slot may start: now or later; infinity while another slot is the canary."""
    if not breaker.is_open or breaker.canary == slot:
        return now_s
    return math.inf if breaker.canary is not None else max(now_s, breaker.next_canary_s)


def started(breaker: Breaker, slot: int) -> Breaker:
    """A slot that had to ask starts: with the breaker open it is the canary."""
    return replace(breaker, canary=slot, calm=None) if breaker.is_open else breaker


def ready(breaker: Breaker, slot: int, ready_for_s: float) -> Breaker:
    """A slot is READY for that long; a canary that proves itself closes the breaker, and so does a long calm.

    The calm is for a canary that was told to leave: who had crashed then runs, or is no longer wanted.
    """
    if not breaker.is_open:
        return breaker
    if breaker.canary is not None:
        return Breaker(done=breaker.done) if breaker.canary == slot and ready_for_s >= CANARY_PROVES_S else breaker
    if breaker.calm is None:
        return replace(breaker, calm=(slot, ready_for_s))
    watched, since_s = breaker.calm
    return Breaker(done=breaker.done) if watched == slot and ready_for_s - since_s >= CALM_S else breaker


def gone(breaker: Breaker, slot: int) -> Breaker:
    """A slot left without a crash: if it was the canary, the next one may be tried."""
    canary = None if breaker.canary == slot else breaker.canary
    calm = None if breaker.calm is not None and breaker.calm[0] == slot else breaker.calm
    return replace(breaker, canary=canary, calm=calm)
