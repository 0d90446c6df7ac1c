"""What `status` shows, put together from slots and shared when it is asked for."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from supervisor.arbiter.services import NAMES
from supervisor.arbiter.troubles import exit_entry, troubles
from supervisor.core.liveness import NS
from supervisor.core.slot import Slot, State
from supervisor.shared_state import HeaderField, SlotField, WorkerState

if TYPE_CHECKING:
    from supervisor.arbiter.arbiter import Arbiter
    from supervisor.arbiter.services import Services
    from supervisor.arbiter.worker_group import WorkerGroup
    from supervisor.shared_state import SharedSlot, SharedState

_ACTIVITIES = frozenset(WorkerState)


def document(arbiter: Arbiter) -> dict[str, Any]:
    """The pool as the arbiter sees it, from what it has at hand: whoever asks must not hold it up."""
    commands, shared, pool = arbiter.commands, arbiter.shared, arbiter.pool
    state = whole_state(arbiter)
    return {
        "state": state,
        "troubles": _troubles(arbiter) if state in ("degraded", "down") else [],
        "pid": os.getpid(),
        "uptime_s": round((time.monotonic_ns() - shared.get(HeaderField.START_NS)) / NS, 3),
        "burst": arbiter.burst,
        "paused": bool(shared.get(HeaderField.PAUSED)),
        "breaker_open": pool.breaker.is_open,
        "redis": arbiter.redis,
        "consumers": [[spec.stream, spec.group] for spec in arbiter.specs],
        "workers": workers(pool),
        "services": services(arbiter.services),
        "operation": commands.describe(),
        "last_operation": commands.last,
    }


def sentence(arbiter: Arbiter) -> str:
    """The pool in one line, for `systemctl status`."""
    slots = arbiter.pool.slots.values()
    ready = sum(slot.state is State.READY for slot in slots)
    return f"{whole_state(arbiter)}: {ready} of {arbiter.pool.size} workers ready"


def whole_state(arbiter: Arbiter) -> str:
    """`state` of the whole, as it is now."""
    rolled = arbiter.commands.rolled
    stopping, began = arbiter.shutdown.begun, arbiter.began
    return state(arbiter.pool, arbiter.services, stopping=stopping, began=began, rolled=rolled)


def _troubles(arbiter: Arbiter) -> list[str]:
    cut_off = _is_cut_off(arbiter.shared)
    return troubles(arbiter.pool, arbiter.services, rolled=arbiter.commands.rolled, cut_off=cut_off)


def state(pool: WorkerGroup, services: Services, *, stopping: bool, began: bool, rolled: int | None) -> str:
    """One word for the whole; `began`: all were READY once; `rolled`: the slot that is being replaced on purpose."""
    if stopping:
        return "draining"
    wanted = [slot for slot in pool.slots.values() if slot.wanted and slot.number != rolled]
    ready = [slot for slot in pool.slots.values() if slot.state is State.READY]
    troubled = any(slot.state in (State.BACKOFF, State.FAILED) for slot in [*wanted, *services.slots.values()])
    if not began and not troubled:
        return "starting"
    if wanted and not ready:
        return "down"
    if troubled or pool.breaker.is_open or _is_cut_off(pool.shared):
        return "degraded"
    living = all(slot.living for slot in services.slots.values())
    return "healthy" if living and all(slot.state is State.READY for slot in wanted) else "degraded"


def workers(pool: WorkerGroup) -> list[dict[str, Any]]:
    """One entry a slot in use."""
    return [_worker(pool.shared, slot) for slot in pool.slots.values() if slot.wanted or slot.state is not State.EMPTY]


def services(crew: Services) -> list[dict[str, Any]]:
    """One entry a service."""
    return [
        {
            "name": NAMES[slot.number],
            "pid": slot.pid or None,
            "state": slot.state.value,
            "restarts": slot.restarts,
            "last_exit": exit_entry(slot.last_exit),
        }
        for slot in sorted(crew.slots.values(), key=lambda slot: slot.number)
    ]


def _worker(shared: SharedState, slot: Slot) -> dict[str, Any]:
    words = shared.slot(slot.number)
    ready_ns, spawn_ns = words.get(SlotField.READY_NS), words.get(SlotField.SPAWN_NS)
    return {
        "slot": slot.number,
        "pid": slot.pid or None,
        "state": slot.state.value,
        "incarnation": slot.incarnation,
        "restarts": slot.restarts,
        "last_exit": exit_entry(slot.last_exit),
        "uptime_s": round(time.monotonic() - slot.spawned_s, 3) if slot.living else None,
        "boot_ms": round((ready_ns - spawn_ns) / 1e6, 1) if slot.living and ready_ns else None,
        "beat_age_s": _age_s(words, SlotField.BEAT_NS) if slot.living else None,
        "fetch_age_s": _age_s(words, SlotField.FETCH_NS) if slot.living else None,
        "settle_age_s": _age_s(words, SlotField.SETTLE_NS) if slot.living else None,
        "in_flight": words.get(SlotField.IN_FLIGHT) if slot.living else 0,
        "waiting": words.get(SlotField.WAITING) if slot.living else 0,
        "done": words.get(SlotField.DONE),
        "failed": words.get(SlotField.FAILED),
        "dead": words.get(SlotField.DEAD),
        # What it is doing, and since when.
        "activity": _activity(words.get(SlotField.STATE)) if slot.living else None,
        "activity_s": _age_s(words, SlotField.STATE_SINCE_NS) if slot.living else None,
        # Acks that came too late: somebody else has settled the message.
        "lost_claim": words.get(SlotField.LOST_CLAIM),
        # Messages that were gone from the stream while they were pending.
        "trimmed": words.get(SlotField.TRIMMED),
        "reconnects": words.get(SlotField.RECONNECTS),
        # Messages found in its own pending list: a predecessor's, or handed over.
        "adopted": words.get(SlotField.ADOPTED),
        "batches": words.get(SlotField.BATCHES),
        "loop_lag_ms_max": round(words.get(SlotField.LOOP_LAG_NS_MAX) / 1e6, 1) if slot.living else None,
    }


def _activity(state: int) -> str:
    """A worker may have written anything into its word, and its slot is to be seen all the same."""
    return WorkerState(state).name.lower() if state in _ACTIVITIES else "unknown"


def _age_s(words: SharedSlot, word: SlotField) -> float | None:
    """How long ago that was; None: never in this incarnation."""
    at_ns = words.get(word)
    return round((time.monotonic_ns() - at_ns) / NS, 3) if at_ns else None


def _is_cut_off(shared: SharedState) -> bool:
    return bool(shared.get(HeaderField.KEEPER_BEAT_NS)) and not shared.get(HeaderField.KEEPER_REDIS_OK)
