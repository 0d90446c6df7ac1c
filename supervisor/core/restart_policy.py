"""Decides when a child that exited is started again: at once, after a backoff, or as the pool's canary.

1. What an exit means (`classify`) and how long its slot waits (`plan`).
2. The pool's crash breaker: when workers crash faster than the backoff of single slots explains, only one
   canary at a time is started until one stays up.

Pure: time and randomness are passed in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from supervisor.core.backoff import backoff_s
from supervisor.errors import EXIT_HANDLERS, EXIT_OK, WORKER_CONFIG, WORKER_PLANNED, WORKER_TEMPFAIL

#: A crash this soon after the start makes the next start wait.
YOUNG_S = 10.0
#: After this time in READY, earlier crashes no longer count.
FORGIVEN_AFTER_S = 60.0
BACKOFF_BASE_S = 0.1
BACKOFF_MAX_S = 30.0
#: The breaker counts crashes within this time.
WINDOW_S = 60.0
CRASHES_MIN = 10
CRASHES_PER_WORKER = 3
#: Completed messages that offset one crash in the breaker. A pool that gets its work done is not in a crash loop,
#: even if one message in twenty kills a worker.
DONE_PER_CRASH = 5
#: The largest number of crashes that earlier messages can offset, for each worker. One message can cause four
#: crashes: one among others and three alone. The cap stops a pool quickly that starts to crash after millions of
#: good messages.
CREDIT_PER_WORKER = 4
#: How long the breaker waits before each canary; the last value repeats.
CANARY_AFTER_S = (5.0, 10.0, 20.0, 40.0, 60.0)
#: A canary that has been READY for this long closes the breaker.
CANARY_PROVES_S = 30.0
#: The breaker also closes if no worker crashed and no canary started for this long: then no slot waits for a canary.
CALM_S = CANARY_AFTER_S[-1] + CANARY_PROVES_S
#: The kill reason of a child that missed its drain deadline; a restart would not help.
DRAIN_TIMEOUT = "drain"
#: The number of SIGTERM, which POSIX fixes.
SIGTERM = 15


class ExitKind(Enum):
    """What an exit means for the slot."""

    #: It was asked to exit, or all work is done.
    DONE = "done"
    #: It exited to be replaced.
    PLANNED = "planned"
    #: It can never start with this configuration.
    CONFIG = "config"
    #: Something that it needs is not available.
    DEPENDENCY = "dependency"
    CRASH = "crash"


_MEANINGS = {
    WORKER_PLANNED: (ExitKind.PLANNED, "recycled"),
    WORKER_CONFIG: (ExitKind.CONFIG, "config"),
    WORKER_TEMPFAIL: (ExitKind.DEPENDENCY, "dependency"),
    # The HTTP service with a router that can't be used.
    EXIT_HANDLERS: (ExitKind.CONFIG, "config"),
}


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child exited."""

    kind: ExitKind
    #: One word for logs and status: drained, done, recycled, config, dependency, exit, signal, hung, deadline, boot...
    reason: str
    #: The exit code; None if a signal ended the child.
    code: int | None
    signal: int | None
    uptime_s: float
    #: Messages completed by this incarnation.
    done: int = 0


def classify(
    code: int | None, signal: int | None, *, draining: bool, kill_reason: str, burst: bool, announced: bool = True
) -> tuple[ExitKind, str]:
    """Return the meaning of an exit and the word for it.

    `kill_reason` is why the arbiter killed the child, or empty. `announced` is False if the exit code comes
    from a handler that called `os._exit`. In a burst, exit code 0 means that no work is left.
    """
    if kill_reason:
        return (ExitKind.DONE if kill_reason == DRAIN_TIMEOUT else ExitKind.CRASH), kill_reason
    if code is not None and not announced:
        return ExitKind.CRASH, "exit"
    # A SIGTERM that arrives before the worker has installed its handlers ends a worker without messages.
    if draining and (code == EXIT_OK or signal == SIGTERM):
        return ExitKind.DONE, "drained"
    if code == EXIT_OK and burst:
        return ExitKind.DONE, "done"
    if signal is not None or code is None:
        return ExitKind.CRASH, "signal"
    return _MEANINGS.get(code, (ExitKind.CRASH, "exit"))


@dataclass(frozen=True, slots=True)
class History:
    """Counters from a slot's earlier exits."""

    #: Consecutive crashes soon after the start.
    crashes: int = 0
    #: Consecutive exits because a dependency was not available.
    misses: int = 0


def plan(history: History, last_exit: Exit, ready_for_s: float, random: Callable[[], float]) -> tuple[History, float]:
    """Return the slot's new history and the wait before its next start, in seconds.

    A child that completed messages is not in a crash loop: one bad message among good ones may have ended it.
    """
    if ready_for_s >= FORGIVEN_AFTER_S or last_exit.done > 0:
        history = History()
    if last_exit.kind is ExitKind.DEPENDENCY:
        misses = history.misses + 1
        return replace(history, misses=misses), backoff_s(misses, BACKOFF_BASE_S, BACKOFF_MAX_S, random)
    if last_exit.kind is not ExitKind.CRASH:
        return replace(history, misses=0), 0.0
    if last_exit.uptime_s >= YOUNG_S:
        return replace(history, misses=0), 0.0
    crashes = history.crashes + 1
    wait_s = 0.0 if crashes == 1 else backoff_s(crashes - 1, BACKOFF_BASE_S, BACKOFF_MAX_S, random)
    return replace(history, crashes=crashes, misses=0), min(wait_s, BACKOFF_MAX_S)


@dataclass(frozen=True, slots=True)
class Breaker:
    """Detects crash loops of the whole pool, which no single slot shows."""

    #: The times of crashes within `WINDOW_S` that no completed messages offset.
    crashed_s: tuple[float, ...] = ()
    is_open: bool = False
    #: Canaries that crashed since the breaker opened.
    lost: int = 0
    #: The slot that runs as the canary.
    canary: int | None = None
    next_canary_s: float = 0.0
    #: A slot that was READY when the calm began, and for how long it had been READY.
    calm: tuple[int, float] | None = None
    #: Crashes that may still be offset. Shared by all workers, because one worker may get many bad messages.
    credit: int = 0
    #: The pool's count of completed messages up to which credit has been given.
    done: int = 0


def crashed(breaker: Breaker, slot: int, workers: int, now_s: float, done: int) -> Breaker:
    """Count a crash unless completed messages offset it; may open the breaker or delay its next canary.

    `done` is the number of messages that the pool has completed so far.
    """
    earned = max(0, done - breaker.done) // DONE_PER_CRASH
    credit = min(CREDIT_PER_WORKER * workers, breaker.credit + earned)
    breaker = replace(breaker, credit=credit, done=breaker.done + earned * DONE_PER_CRASH)
    if credit:
        return gone(replace(breaker, credit=credit - 1), slot)
    recent = tuple(at_s for at_s in breaker.crashed_s if at_s > now_s - WINDOW_S)
    allowed = max(CRASHES_MIN, CRASHES_PER_WORKER * workers)
    # One more than allowed is enough; the list must not grow in a pool that crashes for days.
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
    """Return when this slot may start: now, later, or infinity while another slot is the canary."""
    if not breaker.is_open or breaker.canary == slot:
        return now_s
    return math.inf if breaker.canary is not None else max(now_s, breaker.next_canary_s)


def started(breaker: Breaker, slot: int) -> Breaker:
    """Record the start of a slot that had crashed; while the breaker is open it is the canary."""
    return replace(breaker, canary=slot, calm=None) if breaker.is_open else breaker


def ready(breaker: Breaker, slot: int, ready_for_s: float) -> Breaker:
    """Record that a slot has been READY for `ready_for_s`; a proven canary or a long calm closes the breaker.

    The calm covers a canary that was stopped: the slot that had crashed then runs, or is no longer wanted.
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
    """Record an exit without a crash; if the slot was the canary, the next canary may start."""
    canary = None if breaker.canary == slot else breaker.canary
    calm = None if breaker.calm is not None and breaker.calm[0] == slot else breaker.calm
    return replace(breaker, canary=canary, calm=calm)
