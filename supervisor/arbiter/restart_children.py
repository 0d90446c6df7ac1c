"""Starts, watches, restarts and stops a group of children, as `core.slot` decides about each.

A check looks at every slot, acts, and sets one timer for the next check. Everything else that happens
(an exit, a command) only leads to another check.
"""

import math
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from supervisor.arbiter.child_processes import ChildProcesses, Status
from supervisor.arbiter.loop import Loop, Timer
from supervisor.arbiter.oom_kills import OomKills
from supervisor.arbiter.stack_dumps import StackDumps
from supervisor.core import slot as slots
from supervisor.core.liveness import NS, LivenessMonitor
from supervisor.core.slot import NO_EXIT_NOTES, Action, ExitNotes, Heartbeat, Limits, Slot, State
from supervisor.errors import SupervisorError
from supervisor.text import signal_name

#: How often to check whether a starting child is READY.
STARTING_CHECK_S = 0.01


class ChildGroup:
    """Children that are started, watched, restarted and stopped by the same rules."""

    #: What the log calls one of them.
    noun = "child"
    #: Time between two checks when nothing is due earlier.
    check_interval_s = 0.25

    def __init__(
        self,
        loop: Loop,
        children: ChildProcesses,
        stack_dumps: StackDumps,
        limits: Limits,
        log: Any,
        on_change: Callable[[], None],
        *,
        burst: bool = False,
    ) -> None:
        """`on_change` is called after each change of any slot's state."""
        self.slots: dict[int, Slot] = {}
        self.stopping = False
        self.log = log
        self._loop = loop
        self._children = children
        self._stack_dumps = stack_dumps
        self._oom_kills = OomKills()
        self._limits = limits
        self._on_change = on_change
        self._burst = burst
        self._liveness = LivenessMonitor()
        self._timer: Timer | None = None
        self._checking = False
        #: Slots whose last child the kernel's out-of-memory killer has killed, as far as that can be seen.
        self.oom_killed: set[int] = set()
        #: Slot -> the stack dump of its last child that crashed or was killed.
        self._last_stack: dict[int, str] = {}

    # What each kind of group implements

    def spawn(self, number: int) -> int:
        """Start a process for the slot and return its pid. Raises OSError."""
        raise NotImplementedError

    def heartbeat(self, slot: Slot) -> Heartbeat:
        """Return the heartbeat of the slot's living child."""
        raise NotImplementedError

    def deadline_ns(self, number: int) -> int:
        """Return when the slot's child must have finished its current work; 0: no deadline."""
        return 0

    def log_fields(self, number: int) -> dict[str, Any]:
        """Return the fields that identify the slot in the log."""
        raise NotImplementedError

    def process_name(self, number: int) -> str:
        """Return the name of the slot's process, as `ps` shows it."""
        raise NotImplementedError

    def may_start_at_s(self, slot: Slot, now_s: float) -> float:
        """Return when a slot that is due may start: now, later or never."""
        return now_s

    def handover_slot(self, number: int) -> int | None:
        """Return the slot that takes this one's messages when it is removed; None: no slot can."""
        return None

    def before_terminate(self, slot: Slot) -> None:
        """Called before a child gets its SIGTERM."""

    def after_start(self, slot: Slot) -> None:
        """Called when a new incarnation runs."""

    def after_exit(self, before: Slot, after: Slot) -> None:
        """Called when a child has exited, with the slot before and after that."""

    def exit_notes(self, number: int, code: int | None) -> ExitNotes:
        """Return what the slot's child recorded before it exited with this code."""
        return NO_EXIT_NOTES

    def last_started(self, number: int) -> list[str] | None:
        """Return the ids of the messages that the slot's child started last."""
        return None

    # Commands

    def adopt(self, slot: Slot) -> None:
        """Add a slot, with its child if an earlier image of this process started one."""
        self.slots[slot.number] = slot
        if slot.living:
            self._children.add(slot.pid, partial(self._exited, slot.number))

    def drain(self, number: int, until_s: float) -> None:
        """Have one slot's child finish and exit; it is replaced if the slot is still wanted."""
        self._apply(number, *slots.drain(self.slots[number], until_s))

    def start_now(self, number: int) -> None:
        """Start a slot without a child at once, even if it is FAILED or in BACKOFF."""
        self.slots[number] = slots.due_now(self.slots[number], time.monotonic())
        self.check()

    def stop(self, until_s: float) -> None:
        """Have all children finish and exit by then, and start no new ones."""
        self.stopping = True
        for number, slot in self.slots.items():
            self._apply(number, *slots.drain(replace(slot, wanted=False), until_s))
        self._on_change()

    def kill(self, reason: str) -> None:
        """Kill all children at once."""
        self.stopping = True
        now_s = time.monotonic()
        for number, slot in self.slots.items():
            self._apply(number, *slots.kill(replace(slot, wanted=False), reason, now_s, dump=False))
        self._on_change()

    @property
    def living(self) -> list[Slot]:
        """The slots that have a process."""
        return [slot for slot in self.slots.values() if slot.living]

    # Checks

    def check(self) -> None:
        """Look at every slot, act, and schedule the next check."""
        if self._checking:
            return
        self._checking = True
        try:
            before = {number: slot.state for number, slot in self.slots.items()}
            now_s = self._begin_check()
            for number in sorted(self.slots):
                slot = self.slots[number]
                heartbeat = self.heartbeat(slot) if slot.living else Heartbeat()
                self._apply(number, *slots.advance(slot, heartbeat, self._limits, now_s))
                self._log_ready(slot, self.slots[number])
        finally:
            self._checking = False
            self._schedule()  # also after a bug: a group that is not checked never notices a hung child
        if before != {number: slot.state for number, slot in self.slots.items()}:
            self._on_change()

    def _begin_check(self) -> float:
        """Return one time for the whole check, after moving deadlines back if the arbiter itself was late."""
        now_ns = time.monotonic_ns()
        due_ns = int(self._timer.due_s * NS) if self._timer else 0
        deadlines_ns = {slot.number: self.deadline_ns(slot.number) for slot in self.living}
        late_ns = self._liveness.begin_check(now_ns, due_ns, deadlines_ns)
        if late_ns:
            self.log.warning("arbiter stalled", late_s=round(late_ns / NS, 3))
            self.slots = {number: slots.postpone(slot, late_ns / NS) for number, slot in self.slots.items()}
        return now_ns / NS

    def _apply(self, number: int, slot: Slot, action: Action) -> None:
        self.slots[number] = slot
        if action is Action.START:
            self._start(slot)
        elif action is Action.TERMINATE:
            self.before_terminate(slot)
            self._children.send(slot.pid, signal.SIGTERM)
        elif action is Action.DUMP:
            self.log.warning(
                f"{self.noun} unresponsive", **self.log_fields(number), pid=slot.pid, reason=slot.kill_reason
            )
            self._children.send(slot.pid, signal.SIGUSR2)
        elif action is Action.KILL:
            self._log_stack(slot)
            self._children.kill(slot.pid)

    def _start(self, slot: Slot) -> None:
        if self.stopping or self.may_start_at_s(slot, time.monotonic()) > time.monotonic():
            return
        try:
            pid = self.spawn(slot.number)
        except (OSError, SupervisorError) as error:
            self.log.error(f"{self.noun} start failed", **self.log_fields(slot.number), error=str(error))
            self.slots[slot.number] = slots.not_spawned(slot, time.monotonic(), random.random)
            return
        self._last_stack.pop(slot.number, None)
        self.slots[slot.number] = started = slots.spawned(slot, pid, time.monotonic())
        fields = self.log_fields(slot.number)
        self._log_level(started)(f"{self.noun} started", **fields, pid=pid, incarnation=started.incarnation)
        self.after_start(started)
        self._children.add(pid, partial(self._exited, slot.number))

    def _exited(self, number: int, status: Status) -> None:
        before, notes, now_s = self.slots[number], self.exit_notes(number, status[0]), time.monotonic()
        final = not before.wanted and (self.stopping or self.handover_slot(number) is None)
        after = slots.exited(before, status, now_s, random.random, burst=self._burst, final=final, notes=notes)
        self.slots[number] = after
        self._log_stack(before)
        self._log_exit(before, after)
        if not after.wanted and after.state is State.EMPTY:
            self._stack_dumps.drop(self.process_name(number))
        self.after_exit(before, after)
        self.check()
        self._on_change()

    def _schedule(self) -> None:
        now_s = time.monotonic()
        due_s = now_s + self.check_interval_s if self.living else math.inf
        for slot in self.slots.values():
            due_s = min(due_s, self._due_s(slot, now_s))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due_s == math.inf else self._loop.call_at(due_s, self.check)

    def _due_s(self, slot: Slot, now_s: float) -> float:
        due_s = slots.due_s(slot, self._limits)
        if slot.state is State.STARTING:
            return min(due_s, now_s + STARTING_CHECK_S)
        if slot.state is State.BACKOFF and due_s <= now_s:
            return math.inf if self.stopping else self.may_start_at_s(slot, now_s)
        return due_s

    # The log

    def _log_level(self, slot: Slot) -> Callable[..., None]:
        """Return the log method for a start: the startup report covers the first incarnation."""
        log: Callable[..., None] = self.log.info if slot.incarnation > 1 else self.log.debug
        return log

    def _log_ready(self, before: Slot, after: Slot) -> None:
        if before.state is State.STARTING and after.state is State.READY and after.ready_s is not None:
            ready_ms = round((after.ready_s - after.spawned_s) * 1000)
            fields = self.log_fields(after.number)
            self._log_level(after)(f"{self.noun} ready", **fields, pid=after.pid, ready_ms=ready_ms)

    def _log_stack(self, slot: Slot) -> None:
        stack = self._stack_dumps.take(self.process_name(slot.number))
        if stack:
            self._last_stack[slot.number] = stack
            self.log.warning(f"{self.noun} stack dump", **self.log_fields(slot.number), pid=slot.pid, stack=stack)

    def _log_exit(self, before: Slot, after: Slot) -> None:
        last_exit = after.last_exit
        if last_exit is None:
            return
        killed_from_outside = last_exit.reason == "signal" and last_exit.signal == signal.SIGKILL
        fault = last_exit.reason not in ("drained", "done", "recycled")
        wait_s = round(max(0.0, after.next_start_s - time.monotonic()), 3)
        oom_kills = self._oom_kills.new() if killed_from_outside else None
        self.oom_killed.discard(before.number)
        if oom_kills:
            self.oom_killed.add(before.number)
        log = self.log.warning if fault else self.log.info
        log(
            f"{self.noun} exited",
            **self.log_fields(before.number),
            pid=before.pid,
            reason=last_exit.reason,
            signal=None if last_exit.signal is None else signal_name(last_exit.signal),
            code=last_exit.code,
            likely_cause="the kernel's out-of-memory killer" if killed_from_outside else None,
            oom_kills=oom_kills,
            uptime_s=round(last_exit.uptime_s, 3),
            last_started=(self.last_started(before.number) or None) if fault else None,
            next_start_s=wait_s if after.state is State.BACKOFF else None,
        )
