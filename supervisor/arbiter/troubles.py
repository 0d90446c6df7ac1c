"""What keeps the pool from being healthy, in sentences: the reasons behind the one word of `status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from supervisor.arbiter.services import NAMES
from supervisor.core.slot import State
from supervisor.text import counted, exit_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.arbiter.services import Services
    from supervisor.arbiter.worker_group import WorkerGroup
    from supervisor.core.restart import Exit
    from supervisor.core.slot import Slot

#: What a slot that has no READY child does, as one and as several.
_DOES = {
    State.EMPTY: ("is about to start", "are about to start"),
    State.STARTING: ("is starting", "are starting"),
    State.DRAINING: ("is finishing", "are finishing"),
    State.BACKOFF: ("is restarting", "are restarting"),
    State.FAILED: ("can't start", "can't start"),
}


def troubles(pool: WorkerGroup, services: Services, *, rolled: int | None, cut_off: bool) -> list[str]:
    """One sentence for each kind of trouble. `rolled`: the slot that is being replaced on purpose."""
    found = []
    if pool.breaker.is_open:
        found.append("workers crash too often: only one at a time is tried until it stays up")
    wanted = [slot for slot in pool.slots.values() if slot.wanted and slot.number != rolled]
    for state in _DOES:
        if slots := [slot for slot in wanted if slot.state is state]:
            found.append(_workers(slots, state))
    for slot in services.slots.values():
        if slot.wanted and slot.state in (State.BACKOFF, State.FAILED):
            restarts = f", {counted(slot.restarts, 'restart')}" if slot.restarts else ""
            found.append(f"{NAMES[slot.number]} {_DOES[slot.state][0]} ({_left(slot)}{restarts})")
    if cut_off:
        found.append("the keeper can't use Redis")
    return found


def exit_entry(left: Exit | None) -> dict[str, object] | None:
    """How a child left, as `status` has it."""
    if left is None:
        return None
    return {"reason": left.reason, "code": left.code, "signal": left.signal, "uptime_s": round(left.uptime_s, 3)}


def _workers(slots: Sequence[Slot], state: State) -> str:
    one, several = _DOES[state]
    failing = state in (State.BACKOFF, State.FAILED)
    first = slots[0]
    if len(slots) == 1:
        return f"worker {first.number} {one}" + (f" ({_left(first)})" if failing else "")
    return f"{len(slots)} workers {several}" + (f" (worker {first.number}: {_left(first)})" if failing else "")


def _left(slot: Slot) -> str:
    return exit_text(exit_entry(slot.last_exit))
