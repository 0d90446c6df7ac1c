"""A set of supervised children: carries out what `core.slot` decides about each.

One turn looks at every slot, acts, and sets one timer for when the next thing is due. Everything that
happens (an exit, a command, the clock) only leads to another turn.
"""

from __future__ import annotations

import math
import random
import signal
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from supervisor.arbiter.oom_kills import OomKills
from supervisor.core import slot as slots
from supervisor.core.liveness import NS, LivenessMonitor
from supervisor.core.slot import NO_EXIT_NOTES, Action, ExitNotes, Heartbeat, Limits, Slot, State
from supervisor.errors import SupervisorError
from supervisor.text import signal_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.arbiter.children import Children, Status
    from supervisor.arbiter.loop import Loop, Timer
    from supervisor.arbiter.stack_dumps import StackDumps

#: How often to look whether a child that starts is READY.
STARTING_TURN_S = 0.01


class ChildGroup:
    """Children that are started, watched, restarted and stopped by the same rules."""

    #: What the log calls one of them.
    noun = "child"
    #: How soon to look again when nothing is due.
    turn_s = 0.25

    def __init__(
        self,
        loop: Loop,
        children: Children,
        stacks: StackDumps,
        limits: Limits,
        log: Any,
        changed: Callable[[], None],
        *,
        burst: bool = False,
    ) -> None:
        """`changed` is called after each change of any slot's state."""
        self.slots: dict[int, Slot] = {}
        self.stopping = False
        self.log = log
        self._loop = loop
        self._children = children
        self._stack_dumps = stacks
        self._oom_kills = OomKills()
        self._limits = limits
        self._changed = changed
        self._burst = burst
        self._liveness = LivenessMonitor()
        self._timer: Timer | None = None
        self._turning = False
        #: By slot: what the last child that ended itself, or was killed, has told of its stacks.
        self._last_stack: dict[int, str] = {}

    # What a kind of crew says of itself

    def spawn(self, number: int) -> int:
        """Start a process for the slot; its pid. Raises OSError."""
        raise NotImplementedError

    def sign(self, slot: Slot) -> Heartbeat:
        """What is seen of the slot's living child."""
        raise NotImplementedError

    def deadline_ns(self, number: int) -> int:
        """When the slot's child must be done with what it is doing; 0: no such time."""
        return 0

    def name(self, number: int) -> dict[str, Any]:
        """What the log calls the slot."""
        raise NotImplementedError

    def process_name(self, number: int) -> str:
        """What the process itself is called, for instance in `ps`."""
        raise NotImplementedError

    def starts_at_s(self, slot: Slot, now_s: float) -> float:
        """When a slot that is due may start, seen from the whole crew; now, later or never."""
        return now_s

    def handover_slot(self, number: int) -> int | None:
        """The slot that takes over what this one has in hand when it leaves for good; None: nobody can."""
        return None

    def has_left(self, before: Slot, after: Slot) -> None:
        """A child has left; `after` is the slot as it is now."""

    def notes(self, number: int, code: int | None) -> ExitNotes:
        """What the slot's child has noted, now that it has left with this exit code."""
        return NO_EXIT_NOTES

    def last_started(self, number: int) -> list[str] | None:
        """The ids of what the slot's child has started last: alone, or else of each consumer."""
        return None

    # Commands

    def adopt(self, slot: Slot) -> None:
        """Go on with a slot of the arbiter's predecessor in this process."""
        self.slots[slot.number] = slot
        if slot.living:
            self._children.add(slot.pid, partial(self._gone, slot.number))

    def drain(self, number: int, until_s: float) -> None:
        """Have one slot's child finish and leave; it is replaced if the slot is still wanted."""
        self._do(number, *slots.drain(self.slots[number], until_s))

    def start_now(self, number: int) -> None:
        """Start a slot without a child at once, whatever it waits for or has failed with."""
        self.slots[number] = slots.due_now(self.slots[number], time.monotonic())
        self.turn()

    def stop(self, until_s: float) -> None:
        """Have all finish and leave by then, and start none anew."""
        self.stopping = True
        for number, slot in self.slots.items():
            self._do(number, *slots.drain(replace(slot, wanted=False), until_s))
        self._changed()

    def kill(self, reason: str) -> None:
        """End all at once."""
        self.stopping = True
        now_s = time.monotonic()
        for number, slot in self.slots.items():
            self._do(number, *slots.kill(replace(slot, wanted=False), reason, now_s, dump=False))
        self._changed()

    @property
    def living(self) -> list[Slot]:
        """The slots that have a process."""
        return [slot for slot in self.slots.values() if slot.living]

    # Turning

    def turn(self) -> None:
        """Look at every slot, act, and come back when the next thing is due."""
        if self._turning:
            return
        self._turning = True
        try:
            before = {number: slot.state for number, slot in self.slots.items()}
            now_s = self._look_at_clock()
            for number in sorted(self.slots):
                slot = self.slots[number]
                sign = self.sign(slot) if slot.living else Heartbeat()
                self._do(number, *slots.advance(slot, sign, self._limits, now_s))
                self._tell_ready(slot, self.slots[number])
            self._schedule()
        finally:
            self._turning = False
        if before != {number: slot.state for number, slot in self.slots.items()}:
            self._changed()

    def _look_at_clock(self) -> float:
        """One time for the whole turn, and forgiveness for what ran out while the arbiter itself stood still."""
        now_ns = time.monotonic_ns()
        due_ns = int(self._timer.due_s * NS) if self._timer else 0
        late_ns = self._liveness.turn(
            now_ns, due_ns, {slot.number: self.deadline_ns(slot.number) for slot in self.living}
        )
        if late_ns:
            self.log.warning("arbiter stalled", late_s=round(late_ns / NS, 3))
            self.slots = {number: slots.postpone(slot, late_ns / NS) for number, slot in self.slots.items()}
        return now_ns / NS

    def _do(self, number: int, slot: Slot, action: Action) -> None:
        self.slots[number] = slot
        if action is Action.START:
            self._start(slot)
        elif action is Action.TERMINATE:
            self.told_to_leave(slot)
            self._children.send(slot.pid, signal.SIGTERM)
        elif action is Action.DUMP:
            self.log.warning(f"{self.noun} unresponsive", **self.name(number), pid=slot.pid, reason=slot.kill_reason)
            self._children.send(slot.pid, signal.SIGUSR2)
        elif action is Action.KILL:
            self._tell_stack(slot)
            self._children.kill(slot.pid)

    def told_to_leave(self, slot: Slot) -> None:
        """A child is about to get its SIGTERM."""

    def _start(self, slot: Slot) -> None:
        if self.stopping or self.starts_at_s(slot, time.monotonic()) > time.monotonic():
            return
        try:
            pid = self.spawn(slot.number)
        except (OSError, SupervisorError) as error:
            self.log.error(f"{self.noun} start failed", **self.name(slot.number), error=str(error))
            self.slots[slot.number] = slots.not_spawned(slot, time.monotonic(), random.random)
            return
        self._last_stack.pop(slot.number, None)
        self.slots[slot.number] = slots.spawned(slot, pid, time.monotonic())
        self._teller(slot)(f"{self.noun} started", **self.name(slot.number), pid=pid, incarnation=slot.incarnation + 1)
        self.has_started(self.slots[slot.number])
        self._children.add(pid, partial(self._gone, slot.number))

    def has_started(self, slot: Slot) -> None:
        """A new incarnation runs."""

    def _gone(self, number: int, status: Status) -> None:
        before = self.slots[number]
        final = self.stopping or self.handover_slot(number) is None
        final, notes, now_s = final and not before.wanted, self.notes(number, status[0]), time.monotonic()
        after = slots.exited(before, status, now_s, random.random, burst=self._burst, final=final, notes=notes)
        self.slots[number] = after
        self._tell_stack(before)
        self._tell_exit(before, after, time.monotonic())
        if not after.wanted and after.state is State.EMPTY:
            self._stack_dumps.drop(self.process_name(number))
        self.has_left(before, after)
        self.turn()
        self._changed()

    # The log

    def _teller(self, slot: Slot) -> Callable[..., None]:
        """The first start of all is on the screen; each later one is news."""
        tell: Callable[..., None] = self.log.info if slot.incarnation else self.log.debug
        return tell

    def _tell_ready(self, before: Slot, after: Slot) -> None:
        if before.state is State.STARTING and after.state is State.READY and after.ready_s is not None:
            ready_ms = round((after.ready_s - after.spawned_s) * 1000)
            tell = self._teller(replace(after, incarnation=after.incarnation - 1))
            tell(f"{self.noun} ready", **self.name(after.number), pid=after.pid, ready_ms=ready_ms)

    def _tell_stack(self, slot: Slot) -> None:
        stack = self._stack_dumps.take(self.process_name(slot.number))
        if stack:
            self._last_stack[slot.number] = stack
            self.log.warning(f"{self.noun} stack dump", **self.name(slot.number), pid=slot.pid, stack=stack)

    def _tell_exit(self, before: Slot, after: Slot, now_s: float) -> None:
        left = after.last_exit
        if left is None:
            return
        from_outside = left.reason == "signal" and left.signal == signal.SIGKILL
        fault = left.reason not in ("drained", "done", "recycled")
        tell = self.log.warning if fault else self.log.info
        tell(
            f"{self.noun} exited",
            **self.name(before.number),
            pid=before.pid,
            reason=left.reason,
            signal=None if left.signal is None else signal_name(left.signal),
            code=left.code,
            likely_cause="the kernel's out-of-memory killer" if from_outside else None,
            oom_kills=self._oom_kills.new() if from_outside else None,
            uptime_s=round(left.uptime_s, 3),
            last_started=(self.last_started(before.number) or None) if fault else None,
            next_start_s=round(max(0.0, after.next_start_s - now_s), 3) if after.state is State.BACKOFF else None,
        )

    def _schedule(self) -> None:
        now_s = time.monotonic()
        due_s = now_s + self.turn_s if self.living else math.inf
        for slot in self.slots.values():
            due_s = min(due_s, self.due_s(slot, now_s))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due_s == math.inf else self._loop.at(due_s, self.turn)

    def due_s(self, slot: Slot, now_s: float) -> float:
        """When this slot has to be looked at again."""
        due_s = slots.due_s(slot, self._limits)
        if slot.state is State.STARTING:
            return min(due_s, now_s + STARTING_TURN_S)
        if slot.state is State.BACKOFF and due_s <= now_s:
            return math.inf if self.stopping else self.starts_at_s(slot, now_s)
        return due_s
