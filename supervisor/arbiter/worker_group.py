"""The workers: their words in shared memory, the breaker, scaling."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from supervisor.arbiter.child_group import ChildGroup
from supervisor.core import restart
from supervisor.core.outcome import Crash
from supervisor.core.restart import Breaker, ExitKind
from supervisor.core.slot import ExitNotes, Heartbeat, Slot, State
from supervisor.errors import UsageError
from supervisor.shared_state import SLOTS_MAX, HeaderField, SlotField
from supervisor.text import signal_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.shared_state import SharedState


def worker_name(slot: int) -> str:
    """What the process in a slot is called."""
    return f"worker {slot}"


class WorkerGroup(ChildGroup):
    """All workers of the pool."""

    noun = "worker"

    def __init__(self, shared: SharedState, fork: Callable[[int], int], *args: Any, **options: Any) -> None:
        """`fork` starts the worker of a slot and gives its pid; the rest is `ChildGroup`'s."""
        super().__init__(*args, **options)
        self.shared = shared
        self.breaker = Breaker(done=shared.total(SlotField.DONE))
        #: Some worker has been READY since the pool began: from now on a bad one is no reason to give up.
        self.was_ready = False
        #: Slots whose worker was told of an handover_slot: it may have handed over, even if it is wanted again by now.
        self._handing: set[int] = set()
        self._fork = fork

    # Scaling

    @property
    def size(self) -> int:
        """How many workers there shall be."""
        return sum(slot.wanted for slot in self.slots.values())

    def scale(self, workers: int) -> None:
        """Have so many workers: the highest slots leave, or new ones come. Raises UsageError."""
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
                self.told_to_leave(slot)  # it was to come back, and now is not, or the other way round
        self.turn()

    # What ChildGroup asks

    def spawn(self, number: int) -> int:
        """Clean the slot's words, then fork."""
        words, slot = self.shared.slot(number), self.slots[number]
        words.reset_for_new_worker()
        self.told_to_leave(slot)
        words.set(SlotField.INCARNATION, slot.incarnation + 1)
        words.set(SlotField.SPAWN_NS, time.monotonic_ns())
        words.set(SlotField.DONE_BEFORE, words.get(SlotField.DONE))
        pid = self._fork(number)
        words.set(SlotField.PID, pid)
        return pid

    def name(self, number: int) -> dict[str, Any]:
        """By slot."""
        return {"slot": number}

    def process_name(self, number: int) -> str:
        """By slot, too."""
        return worker_name(number)

    def sign(self, slot: Slot) -> Heartbeat:
        """What the worker's own words say."""
        words = self.shared.slot(slot.number)
        return self._liveness.sign(
            slot.number,
            ready=bool(words.get(SlotField.READY_NS)),
            beat_ns=words.get(SlotField.BEAT_NS),
            deadline_ns=words.get(SlotField.DEADLINE_NS),
        )

    def deadline_ns(self, number: int) -> int:
        """From shared memory."""
        return self.shared.slot(number).get(SlotField.DEADLINE_NS)

    def starts_at_s(self, slot: Slot, now_s: float) -> float:
        """The breaker holds back those that crashed."""
        left = slot.last_exit
        if left is None or left.kind is not ExitKind.CRASH:
            return now_s
        return restart.permitted_s(self.breaker, slot.number, now_s)

    def has_started(self, slot: Slot) -> None:
        """With the breaker open this one is the canary."""
        if slot.last_exit is not None and slot.last_exit.kind is ExitKind.CRASH:
            self.breaker = restart.started(self.breaker, slot.number)

    def has_left(self, before: Slot, after: Slot) -> None:
        """Count crashes; tell the others when a slot has left for good."""
        words, left = self.shared.slot(before.number), after.last_exit
        words.set(SlotField.PID, 0)
        crashed = left is not None and left.kind is ExitKind.CRASH
        if crashed and not self.stopping:
            self._count_crash(before.number)
        else:
            self.breaker = restart.gone(self.breaker, before.number)
        if not crashed and not self.stopping:
            words.clear_started()
        if not self.stopping and (after.state is State.EMPTY or before.number in self._handing):
            self._handing.discard(before.number)
            self._poke()

    def _count_crash(self, number: int) -> None:
        was_open = self.breaker.is_open
        done = self.shared.total(SlotField.DONE)
        self.breaker = restart.crashed(self.breaker, number, self.size, time.monotonic(), done)
        if self.breaker.is_open and not was_open:
            self.log.error(
                "crash breaker opened",
                crashes=len(self.breaker.crashed_s),
                within_s=restart.WINDOW_S,
            )

    def told_to_leave(self, slot: Slot) -> None:
        """One that leaves for good hands over what it has."""
        word = self._leave_word(slot)
        if word:
            self._handing.add(slot.number)
        self.shared.slot(slot.number).set(SlotField.HANDOVER_TO, word)

    def handover_slot(self, number: int) -> int | None:
        """The lowest that stays."""
        return min((slot.number for slot in self.living if slot.wanted and slot.number != number), default=None)

    def _leave_word(self, slot: Slot) -> int:
        handover_slot = None if slot.wanted or self.stopping else self.handover_slot(slot.number)
        return 0 if handover_slot is None else 1 + handover_slot

    def notes(self, number: int, code: int | None) -> ExitNotes:
        """From shared memory: the code that it was about to leave with, and its count of messages, which goes on."""
        words = self.shared.slot(number)
        announced = code is None or words.get(SlotField.EXIT_CODE) == 1 + code
        return ExitNotes(announced, words.get(SlotField.DONE) - words.get(SlotField.DONE_BEFORE))

    def crash(self, number: int) -> Crash | None:
        """How the slot's last worker crashed; None when it left otherwise, or there was none."""
        left = self.slots[number].last_exit
        if left is None or left.kind is not ExitKind.CRASH:
            return None
        signal = "" if left.signal is None else signal_name(left.signal)
        return Crash(left.reason, signal, left.code, self._last_stack.get(number, ""))

    def last_started(self, number: int) -> list[str]:
        """The ids in shared memory."""
        return [f"{ms}-{seq}" for ms, seq in self.shared.slot(number).last_started()]

    # Turning

    def turn(self) -> None:
        """As every crew; then see whether the canary has proved itself."""
        super().turn()
        was_open, now_s = self.breaker.is_open, time.monotonic()
        for slot in self.slots.values():
            if slot.ready_s is not None:
                self.was_ready = True
                self.breaker = restart.ready(self.breaker, slot.number, now_s - slot.ready_s)
        if was_open and not self.breaker.is_open:
            self.log.info("crash breaker closed")
            super().turn()

    def _poke(self) -> None:
        for slot in self.living:
            words = self.shared.slot(slot.number)
            words.add(SlotField.RESCAN_PENDING, 1)
