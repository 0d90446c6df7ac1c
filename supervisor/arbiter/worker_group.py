"""The group of workers: their fields in shared memory, the crash breaker, scaling."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from supervisor.arbiter.gil_watch import GilWatch
from supervisor.arbiter.restart_children import ChildGroup
from supervisor.arbiter.spawn import worker_name
from supervisor.core import restart_policy
from supervisor.core.outcome import Crash
from supervisor.core.restart_policy import Breaker, ExitKind
from supervisor.core.slot import ExitNotes, Heartbeat, Slot, State
from supervisor.errors import EXIT_OK, UsageError
from supervisor.shared_state import SLOTS_MAX, HeaderField, SharedSlot, SharedState, SlotField, WorkerState
from supervisor.text import signal_name

_IN_LIFESPAN = frozenset({WorkerState.LIFESPAN_START, WorkerState.LIFESPAN_END})
_LEAVING = frozenset({WorkerState.DRAIN, WorkerState.LIFESPAN_END})


class WorkerGroup(ChildGroup):
    """All workers of the pool."""

    noun = "worker"

    def __init__(
        self, shared: SharedState, fork: Callable[[int, Crash | None], int], *args: Any, **options: Any
    ) -> None:
        """`fork(slot, how its last worker crashed)` starts a worker and returns its pid; the rest is `ChildGroup`'s."""
        super().__init__(*args, **options)
        self.shared = shared
        self.breaker = Breaker(done=shared.total(SlotField.DONE))
        #: Some worker has been READY since the pool started.
        self.was_ready = False
        #: Slots whose worker was asked to hand over. It may have done so even if the slot is wanted again by now.
        self._handing_over: set[int] = set()
        self._fork = fork
        self._gil = GilWatch()
        #: Workers whose starvation was logged.
        self._starved: set[int] = set()

    # Scaling

    @property
    def size(self) -> int:
        """The number of workers that there should be."""
        return sum(slot.wanted for slot in self.slots.values())

    @property
    def all_ready(self) -> bool:
        """True if every wanted worker is READY."""
        return bool(self.slots) and all(slot.state is State.READY for slot in self.slots.values() if slot.wanted)

    def scale(self, workers: int) -> None:
        """Change the number of workers; the highest slots are removed first. Raises UsageError."""
        if not 0 <= workers <= SLOTS_MAX:
            raise UsageError(f"workers = {workers}: it must be between 0 and {SLOTS_MAX}")
        self.shared.set(HeaderField.WORKERS, workers)
        for number in range(max(workers, len(self.slots))):
            slot = self.slots.get(number, Slot(number))
            slot = replace(slot, wanted=number < workers)
            if not slot.wanted and slot.state is State.FAILED:
                slot = replace(slot, state=State.EMPTY)
            self.slots[number] = slot
            if slot.state is State.DRAINING:
                self.before_terminate(slot)  # whether it hands over depends on whether the slot is wanted
        self.check()

    # What ChildGroup asks for

    def spawn(self, number: int) -> int:
        """Reset the slot's fields, then fork."""
        fields, slot = self.shared.slot(number), self.slots[number]
        fields.reset_for_new_worker()
        self.before_terminate(slot)
        fields.set(SlotField.INCARNATION, slot.incarnation + 1)
        fields.set(SlotField.SPAWN_NS, time.monotonic_ns())
        fields.set(SlotField.DONE_BEFORE, fields.get(SlotField.DONE))
        pid = self._fork(number, self._last_crash(number))
        fields.set(SlotField.PID, pid)
        return pid

    def log_fields(self, number: int) -> dict[str, Any]:
        """Return the slot's number."""
        return {"slot": number}

    def process_name(self, number: int) -> str:
        """Return `worker N`."""
        return worker_name(number)

    def heartbeat(self, slot: Slot) -> Heartbeat:
        """Return what the worker wrote to its fields."""
        fields = self.shared.slot(slot.number)
        ready, state = bool(fields.get(SlotField.READY_NS)), fields.get(SlotField.STATE)
        if state in _IN_LIFESPAN:
            # It may load a model in one step; the boot limit and the deadline of a drain hold.
            return Heartbeat(ready=ready, leaving=state == WorkerState.LIFESPAN_END)
        heartbeat = self._liveness.heartbeat(
            slot.number,
            ready=ready,
            beat_ns=fields.get(SlotField.BEAT_NS),
            deadline_ns=fields.get(SlotField.DEADLINE_NS),
        )
        return replace(self._excused(heartbeat, slot, fields), leaving=state == WorkerState.DRAIN)

    def _excused(self, heartbeat: Heartbeat, slot: Slot, fields: SharedSlot) -> Heartbeat:
        """Do not count the silence of a loop that a thread of a plain handler starves, within the handler's time."""
        limit_s = self._limits.beat_s
        if heartbeat.silent_s < limit_s / 2:
            self._gil.forget(slot.pid)
            self._starved.discard(slot.pid)
            return heartbeat
        if fields.get(SlotField.THREADS_UNTIL_NS) < time.monotonic_ns() or not self._gil.is_starved(slot.pid):
            return heartbeat
        if heartbeat.silent_s > limit_s and slot.pid not in self._starved:
            self._starved.add(slot.pid)
            hint = 'a plain handler holds Python\'s lock for long: give it run_in = "process"'
            ids = self.last_started(slot.number) or None
            self.log.warning(
                "worker starved", **self.log_fields(slot.number), pid=slot.pid, last_started=ids, hint=hint
            )
        return replace(heartbeat, silent_s=0.0, overdue=False)

    def deadline_ns(self, number: int) -> int:
        """Return the deadline that the worker set itself."""
        return self.shared.slot(number).get(SlotField.DEADLINE_NS)

    def may_start_at_s(self, slot: Slot, now_s: float) -> float:
        """Let the breaker delay slots that crashed."""
        if slot.last_exit is None or slot.last_exit.kind is not ExitKind.CRASH:
            return now_s
        return restart_policy.permitted_s(self.breaker, slot.number, now_s)

    def after_start(self, slot: Slot) -> None:
        """Count the restart; make a slot that had crashed the canary, if the breaker is open."""
        if slot.restarts:
            self.shared.slot(slot.number).add(self._restart_field(slot), 1)
        if slot.last_exit is not None and slot.last_exit.kind is ExitKind.CRASH:
            self.breaker = restart_policy.started(self.breaker, slot.number)

    def _restart_field(self, slot: Slot) -> SlotField:
        """Return the field that counts restarts after an exit like the slot's last one."""
        last_exit = slot.last_exit
        if last_exit is None or last_exit.kind in (ExitKind.DONE, ExitKind.PLANNED):
            return SlotField.RESTARTS_RECYCLE
        if last_exit.reason in ("hung", "deadline", "boot"):
            return SlotField.RESTARTS_HUNG
        if last_exit.signal is None:
            return SlotField.RESTARTS_EXIT
        return SlotField.RESTARTS_OOM if slot.number in self.oom_killed else SlotField.RESTARTS_SIGNAL

    def after_exit(self, before: Slot, after: Slot) -> None:
        """Count crashes; have the other workers rescan their pending lists after a handover."""
        fields, last_exit = self.shared.slot(before.number), after.last_exit
        self._gil.forget(before.pid)
        self._starved.discard(before.pid)
        fields.set(SlotField.PID, 0)
        fields.set(SlotField.EXITED_NS, time.monotonic_ns())
        crashed = last_exit is not None and last_exit.kind is ExitKind.CRASH
        if crashed and not self.stopping:
            self._count_crash(before.number)
        else:
            self.breaker = restart_policy.gone(self.breaker, before.number)
        if not crashed and not self.stopping:
            fields.clear_started()
        if not self.stopping and (after.state is State.EMPTY or before.number in self._handing_over):
            self._handing_over.discard(before.number)
            for slot in self.living:
                self.shared.slot(slot.number).add(SlotField.RESCAN_PENDING, 1)

    def _count_crash(self, number: int) -> None:
        was_open = self.breaker.is_open
        done = self.shared.total(SlotField.DONE)
        self.breaker = restart_policy.crashed(self.breaker, number, self.size, time.monotonic(), done)
        if self.breaker.is_open and not was_open:
            crashes = len(self.breaker.crashed_s)
            self.log.error("crash breaker opened", crashes=crashes, within_s=restart_policy.WINDOW_S)

    def before_terminate(self, slot: Slot) -> None:
        """Tell the worker which slot takes its messages, if its own slot is being removed."""
        target = None if slot.wanted or self.stopping else self.handover_slot(slot.number)
        if target is not None:
            self._handing_over.add(slot.number)
        self.shared.slot(slot.number).set(SlotField.HANDOVER_TO, 0 if target is None else 1 + target)

    def handover_slot(self, number: int) -> int | None:
        """Return the lowest slot that stays."""
        return min((slot.number for slot in self.living if slot.wanted and slot.number != number), default=None)

    def exit_notes(self, number: int, code: int | None) -> ExitNotes:
        """Return the announced exit code and the completed messages from shared memory."""
        fields = self.shared.slot(number)
        announced = code is None or fields.get(SlotField.EXIT_CODE) == 1 + code
        drained = announced and code == EXIT_OK and fields.get(SlotField.STATE) in _LEAVING
        return ExitNotes(announced, fields.get(SlotField.DONE) - fields.get(SlotField.DONE_BEFORE), drained)

    def _last_crash(self, number: int) -> Crash | None:
        """Return how the slot's last worker crashed; None if it did not."""
        last_exit = self.slots[number].last_exit
        if last_exit is None or last_exit.kind is not ExitKind.CRASH:
            return None
        signal = "" if last_exit.signal is None else signal_name(last_exit.signal)
        return Crash(last_exit.reason, signal, last_exit.code, self._last_stack.get(number, ""))

    def last_started(self, number: int) -> list[str]:
        """Return the ids from shared memory."""
        return [f"{ms}-{seq}" for ms, seq in self.shared.slot(number).last_started()]

    def check(self) -> None:
        """Check all slots, then whether a canary has closed the breaker."""
        super().check()
        was_open, now_s = self.breaker.is_open, time.monotonic()
        for slot in self.slots.values():
            if slot.ready_s is not None:
                self.was_ready = True
                self.breaker = restart_policy.ready(self.breaker, slot.number, now_s - slot.ready_s)
        if was_open and not self.breaker.is_open:
            self.log.info("crash breaker closed")
            super().check()
