"""The rolling restart: check the new code and configuration, load them, replace the workers one at a time.

1. A preflight process loads the new code and configuration. If it fails, nothing has changed.
2. The arbiter replaces its own image (`reload`); its successor calls `roll`.
3. One slot after the other is drained and started again. The next slot follows when the new worker is READY.
   The restart stops at the first new worker that does not stay up; the other workers remain.

When the successor can't load what the preflight could, its own successor calls `hold` instead: the workers stay, and a
preflight is tried again and again until one succeeds.
"""

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from supervisor.arbiter.check_process import CheckProcess
from supervisor.arbiter.loop import Loop, Timer
from supervisor.arbiter.services import ServiceGroup
from supervisor.arbiter.shutdown import Shutdown
from supervisor.arbiter.spawn import API, KEEPER, RELAY
from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.core.slot import State
from supervisor.errors import SupervisorError

#: While the code can't be loaded, a preflight is tried this often, at first and later.
RETRY_S = 1.0
LATER_RETRY_S = 10.0
#: After this time the restart counts as failed; it is still tried again.
HOLD_LIMIT_S = 60.0
#: A new worker must stay READY for this long before the next slot is drained.
STEADY_S = 0.2


@dataclass(slots=True)
class RollingRestart:
    """Runs one restart at a time and queues at most one more."""

    workers: WorkerGroup
    services: ServiceGroup
    shutdown: Shutdown
    loop: Loop
    log: Any
    drain_s: float
    #: Starts the preflight; its argument is called with the exit code and the report.
    start_preflight: Callable[[Callable[[int, dict[str, Any]], None]], CheckProcess]
    #: Replaces the image of this process by what the preflight has reported. Raises OSError if that fails.
    exec_successor: Callable[[dict[str, Any]], None]
    #: The result of the last restart.
    last: dict[str, Any] | None = None
    #: When it ended, monotonic.
    ended_s: float = 0.0
    #: Why the new code can't be loaded though a preflight could; empty: it is loaded.
    load_error: str = ""
    #: Since when, monotonic.
    held_since_s: float = 0.0
    _preflight: CheckProcess | None = None
    _roll: "_Roll | None" = None
    _queued: bool = False
    _retry_timer: Timer | None = None

    @property
    def rolling(self) -> bool:
        """True while workers are being replaced."""
        return self._roll is not None

    def is_replacing(self, slot: int) -> bool:
        """Return whether the worker of this slot is being replaced."""
        return self._roll is not None and self._roll.is_replacing(slot)

    def describe(self) -> dict[str, Any] | None:
        """Return the restart in progress, for `status`."""
        if self.load_error and self.last is None:
            return {"kind": "restart", "phase": "retrying", "error": self.load_error}
        if self._preflight is not None:
            return {"kind": "restart", "phase": "preflight"}
        if self._roll is not None:
            return {"kind": "restart", "phase": "rolling", "done": self._roll.done, "total": self._roll.total}
        return None

    def describe_last(self) -> dict[str, Any] | None:
        """Return how the last restart ended, and how long ago, for `status`."""
        return self.last and {**self.last, "age_s": round(time.monotonic() - self.ended_s, 3)}

    def start(self, *, afresh: bool = False) -> None:
        """Start a restart; queue one more if workers are already being replaced.

        `afresh`: a file has just changed, so a preflight that is under way begins again.
        """
        if self._preflight is not None:
            if afresh:
                self._queued = True
                self._preflight.kill()
            return
        if self._roll is not None:
            self._queued = True
            return
        try:
            self._preflight = self.start_preflight(self._preflight_done)
        except (OSError, SupervisorError) as error:
            self._not_loaded("the check of the new code can't be started", str(error))

    def cancel(self) -> None:
        """Cancel the preflight, because the pool is shutting down."""
        if self._preflight is not None:
            self._preflight.kill()

    def hold(self, error: str, since_s: float) -> None:
        """Keep the workers, whose code is not at hand any more, and try again to load the new code."""
        if not self.load_error:
            self.log.error("restart held", error=error)
        self.load_error, self.held_since_s = error, since_s
        held_s = time.monotonic() - since_s
        if held_s > HOLD_LIMIT_S and self.last is None:
            self._end(f"the workers run the earlier code, because the new code can't be loaded: {error}")
        retry_s = RETRY_S if held_s < HOLD_LIMIT_S else LATER_RETRY_S
        if self._retry_timer is not None:  # somebody asked for a restart before the next attempt was due
            self._retry_timer.cancel()
        self._retry_timer = self.loop.call_at(time.monotonic() + retry_s, self._retry)

    def _retry(self) -> None:
        if self._preflight is None and not self.shutdown.begun:
            self.start()

    def roll(self, *, at_once: bool = False) -> None:
        """Replace the current workers; `at_once`: all at the same time, for development."""
        self._roll = _Roll(self.workers, self.drain_s, at_once=at_once)
        self.step()

    def step(self) -> None:
        """Continue the restart in progress; called after every change of a slot."""
        roll = self._roll
        if roll is None:
            return
        wait_s = roll.step()
        if wait_s < math.inf:
            self.loop.call_at(time.monotonic() + wait_s, self.step)
        if not roll.is_over or self._roll is None:
            return
        self._roll = None
        if not roll.error:
            for name in (KEEPER, API, RELAY):
                self.services.restart(name, self.drain_s)
            self.services.check()
        self._end(roll.error)
        if self._queued:  # even after a failure: the new request may have fixed its cause
            self._queued = False
            self.start()

    def _preflight_done(self, code: int, report: dict[str, Any]) -> None:
        self._preflight = None
        if self.shutdown.begun:
            return
        if self._queued:
            self._queued = False
            self.start()
            return
        if code != 0:
            why, trace = "the new code or configuration is unusable", report.get("traceback")
            self._not_loaded(why, str(report.get("error")), trace)
            return
        try:
            self.exec_successor(report)
        except Exception as error:  # also a bug: the restart must not count as done
            trace = None if isinstance(error, OSError) else traceback.format_exc()
            self._not_loaded("this process could not be replaced", str(error), trace)

    def _not_loaded(self, why: str, error: str, trace: str | None = None) -> None:
        if self.load_error:
            self.hold(error, self.held_since_s)
        else:
            self._end(f"nothing was changed, because {why}: {error}", trace)

    def _end(self, error: str, trace: str | None = None) -> None:
        self.last, self.ended_s = {"kind": "restart", "ok": not error, "error": error or None}, time.monotonic()
        if error:
            self.log.error("restart failed", error=error, exception=trace or None)
        else:
            self.log.info("restarted", workers=self.workers.size)


class _Roll:
    """Replaces the workers that run when it is created, one at a time."""

    def __init__(self, workers: WorkerGroup, drain_s: float, *, at_once: bool) -> None:
        self._workers = workers
        self._drain_s = drain_s
        self._at_once = at_once
        self._todo = sorted(slot.number for slot in workers.slots.values() if slot.wanted)
        #: (slot, incarnation that is being replaced)
        self._current: tuple[int, int] | None = None
        self.total = len(self._todo)
        self.done = 0
        #: Why the restart stopped early.
        self.error = ""
        self._incarnations = {number: workers.slots[number].incarnation for number in self._todo}
        for number in self._todo if at_once else ():
            self._replace(number)

    @property
    def is_over(self) -> bool:
        """True if there is nothing left to do."""
        return bool(self.error) or (self._current is None and not self._todo)

    def is_replacing(self, slot: int) -> bool:
        """Return whether the worker of this slot is being replaced."""
        return (self._current is not None and self._current[0] == slot) or (self._at_once and slot in self._todo)

    def step(self) -> float:
        """Continue as far as possible; return seconds until the next step, infinity if a slot must change first."""
        while not self.is_over:
            if self._current is None:
                self._begin(self._todo.pop(0))
                continue
            wait_s = self._check(*self._current)
            if wait_s > 0:
                return wait_s
        return math.inf

    def _begin(self, number: int) -> None:
        self._current = number, self._incarnations[number]
        if not self._at_once:
            self._incarnations[number] = self._workers.slots[number].incarnation
            self._current = number, self._incarnations[number]
            self._replace(number)

    def _replace(self, number: int) -> None:
        slot = self._workers.slots[number]
        if slot.living:
            self._workers.drain(number, time.monotonic() + self._drain_s)
        else:
            self._workers.start_now(number)

    def _check(self, number: int, incarnation: int) -> float:
        """Return how long to wait for this slot; 0 if it is finished or has failed."""
        slot = self._workers.slots[number]
        if not slot.wanted:
            self._current = None
            return 0.0
        if slot.incarnation == incarnation:
            if slot.state is State.FAILED:  # the old worker could not start
                self._workers.start_now(number)
            return math.inf
        if slot.state in (State.FAILED, State.BACKOFF) or slot.incarnation > incarnation + 1:
            self.error = f"the new worker in slot {number} did not stay up"
            self._current = None
            return 0.0
        if slot.state is not State.READY or slot.ready_s is None:
            return math.inf
        left_s = slot.ready_s + STEADY_S - time.monotonic()
        if left_s > 0:
            return left_s
        self.done += 1
        self._current = None
        return 0.0
