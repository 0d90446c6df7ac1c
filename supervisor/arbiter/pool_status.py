"""The answer to `status`: the state of the pool, its workers and services, and what is wrong with it."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from supervisor.arbiter import pool_figures
from supervisor.arbiter.rolling_restart import RollingRestart
from supervisor.arbiter.services import BEATS, ServiceGroup, name_of
from supervisor.arbiter.shutdown import Shutdown
from supervisor.arbiter.spawn import RELAY, Specs
from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.core.cut_off import CUT_OFF_S, SETTLED, reason_of, unpack_code
from supervisor.core.lacks import REMEDIES, Lack
from supervisor.core.liveness import NS
from supervisor.core.relay_state import RelayState
from supervisor.core.restart_policy import Exit
from supervisor.core.slot import Slot, State
from supervisor.handling.loader import HandlerSpec
from supervisor.settings.load import Loaded
from supervisor.shared_state import HeaderField, SharedSlot, SharedState, SlotField, WorkerState, consumer_key
from supervisor.text import counted, exit_text, path_text

_ACTIVITIES = frozenset(WorkerState)
_RELAY_STATES = frozenset(RelayState)
#: What the relay can't use in this state.
_LOST_BY_RELAY: dict[int, str] = {RelayState.NO_DATABASE: "its database", RelayState.NO_REDIS: "Redis"}
_LACKS = frozenset(Lack) - {Lack.NONE}
#: What a slot without a READY child does, in singular and plural.
_DOES = {
    State.EMPTY: ("is about to start", "are about to start"),
    State.STARTING: ("is starting", "are starting"),
    State.DRAINING: ("is finishing", "are finishing"),
    State.BACKOFF: ("is restarting", "are restarting"),
    State.FAILED: ("can't start", "can't start"),
}


@dataclass(slots=True)
class PoolStatus:
    """Reads the parts of the pool. It uses only what is at hand, so that a request never delays the arbiter."""

    workers: WorkerGroup
    services: ServiceGroup
    shutdown: Shutdown
    restarts: RollingRestart
    specs: Specs
    burst: bool
    loaded: Loaded
    #: What the boot check found: `{"url", "version", "durability"}`; empty before.
    redis: dict[str, Any] = field(default_factory=dict)
    #: All workers have been READY once.
    started: bool = False

    def document(self) -> dict[str, Any]:
        """Return what `status --json` shows, except for the groups, which only Redis knows."""
        shared, state = self.workers.shared, self.state
        return {
            "state": state,
            "degraded_reasons": self._degraded_reasons() if state in ("degraded", "down") else [],
            "pid": os.getpid(),
            "uptime_s": round((time.monotonic_ns() - shared.get(HeaderField.START_NS)) / NS, 3),
            "burst": self.burst,
            "config": path_text(self.loaded.path) if self.loaded.path else None,
            "state_dir": path_text(self.loaded.settings.state_dir),
            "paused": self._paused,
            "paused_since": self._paused_since,
            "cut_off": self._cut_off(),
            "circuits": self._circuits(),
            "breaker_open": self.workers.breaker.is_open,
            "redis": self.redis,
            "workers": [
                _worker(slot, shared.slot(slot.number))
                for slot in self.workers.slots.values()
                if slot.wanted or slot.state is not State.EMPTY
            ],
            "outbox": self._outbox(),
            "services": [
                _service(slot, shared) for slot in sorted(self.services.slots.values(), key=lambda slot: slot.number)
            ],
            "operation": self.restarts.describe(),
            "last_operation": self.restarts.describe_last(),
        }

    def figures(self) -> dict[str, Any]:
        """Return the answer to `figures`: what all workers have counted."""
        return pool_figures.document(self.workers.shared, self.specs, sorted(self.workers.slots))

    def line(self) -> str:
        """Return the pool in one line, for `systemctl status`."""
        ready = sum(slot.state is State.READY for slot in self.workers.slots.values())
        return f"{self.state}: {ready} of {self.workers.size} workers ready"

    @property
    def state(self) -> str:
        """The state of the whole pool in one word."""
        if self.shutdown.begun:
            return "draining"
        wanted, services = self._wanted(), self.services.slots.values()
        broken = any(slot.state in (State.BACKOFF, State.FAILED) for slot in [*wanted, *services])
        if not self.started and not broken:
            return "starting"
        if wanted and not any(slot.state is State.READY for slot in self.workers.slots.values()):
            return "down"
        if broken or self.workers.breaker.is_open or self._redis_lost or self._worker_problems():
            return "degraded"
        complete = all(slot.state is State.READY for slot in wanted) and all(slot.living for slot in services)
        if not complete:
            return "degraded"
        return "paused" if self._paused else "healthy"

    def _wanted(self) -> list[Slot]:
        """Return the slots that should be READY, without the one that is being replaced on purpose."""
        return [
            slot for slot in self.workers.slots.values() if slot.wanted and not self.restarts.is_replacing(slot.number)
        ]

    def _lacking(self) -> dict[Lack, list[int]]:
        """Return what workers lack, and in which slots."""
        slots_by_lack: dict[Lack, list[int]] = {}
        for slot in self.workers.living:
            value = self.workers.shared.slot(slot.number).get(SlotField.LACK)
            if value in _LACKS:
                slots_by_lack.setdefault(Lack(value), []).append(slot.number)
        return slots_by_lack

    @property
    def _redis_lost(self) -> bool:
        shared = self.workers.shared
        return bool(shared.get(HeaderField.KEEPER_BEAT_NS)) and not shared.get(HeaderField.KEEPER_REDIS_OK)

    @property
    def _paused(self) -> bool:
        return bool(self.workers.shared.get(HeaderField.PAUSED))

    @property
    def _paused_since(self) -> str | None:
        if not self._paused:
            return None
        since = datetime.fromtimestamp(self.workers.shared.get(HeaderField.PAUSED_MS) / 1000, UTC)
        return since.isoformat(timespec="seconds").replace("+00:00", "Z")

    def _outbox(self) -> dict[str, Any] | None:
        """Return what the relay does and what waits for it; None without one."""
        if self.services.get(RELAY) is None:
            return None
        shared = self.workers.shared
        oldest_ms = shared.get(HeaderField.OUTBOX_OLDEST_MS)
        return {
            "state": _relay_state(shared),
            "rows": shared.get(HeaderField.OUTBOX_ROWS),
            "oldest_s": round(max(0.0, time.time() - oldest_ms / 1000), 1) if oldest_ms else None,
            "published": shared.get(HeaderField.RELAYED),
        }

    def _cut_off(self) -> list[dict[str, Any]]:
        """Return the groups that workers can't read for some time, with the reason of the first."""
        groups: list[dict[str, Any]] = []
        for spec, cut_off_s, code in self._hindered_handlers(SlotField.CUT_OFF):
            since_s = [since for since in cut_off_s if since >= CUT_OFF_S]
            if since_s:
                groups.append({**self._group(spec, len(since_s)), "for_s": max(since_s), "reason": reason_of(code)})
        return groups

    def _circuits(self) -> list[dict[str, Any]]:
        """Return the groups whose handler fails for nearly everything."""
        return [
            {**self._group(spec, len(open_s)), "for_s": max(open_s)}
            for spec, open_s, _ in self._hindered_handlers(SlotField.CIRCUITS_OPEN)
        ]

    def _group(self, spec: HandlerSpec, workers: int) -> dict[str, Any]:
        ready = sum(slot.state is State.READY for slot in self.workers.slots.values())
        return {"stream": spec.stream, "group": spec.group, "workers": workers, "of": ready}

    def _hindered_handlers(self, count: SlotField) -> list[tuple[HandlerSpec, list[float], str]]:
        """Return the handlers that something hinders, for how long in each worker, and the code of the first error.

        `count` is the slot's field that says whether there are any.
        """
        shared, now_ns = self.workers.shared, time.monotonic_ns()
        ready = [slot.number for slot in self.workers.slots.values() if slot.state is State.READY]
        rows = [shared.slot(number).cut_offs_and_circuits() for number in ready if shared.slot(number).get(count)]
        hindered = []
        for spec in self.specs if rows else ():
            key = consumer_key(spec.stream, spec.group)
            fields = [row[key] for row in rows if key in row]
            at = 0 if count is SlotField.CUT_OFF else -1
            since_s = [round((now_ns - one[at]) / NS, 1) for one in fields if 0 < one[at] <= now_ns]
            if since_s:
                hindered.append((spec, since_s, unpack_code(*fields[0][1:3])))
        return hindered

    def _degraded_reasons(self) -> list[str]:
        reasons = []
        if self.workers.breaker.is_open:
            reasons.append("workers crash too often: only one at a time is started until it stays up")
        wanted = self._wanted()
        for state in _DOES:
            if slots := [slot for slot in wanted if slot.state is state]:
                reasons.append(_workers_text(slots, state))
        for slot in self.services.slots.values():
            if slot.wanted and slot.state in (State.BACKOFF, State.FAILED):
                restarts = f", {counted(slot.restarts, 'restart')}" if slot.restarts else ""
                reasons.append(f"{name_of(slot.number)} {_DOES[slot.state][0]} ({_exit_text(slot)}{restarts})")
        if self._redis_lost:
            reasons.append("the keeper can't use Redis")
        return [*reasons, *self._worker_problems()]

    def _worker_problems(self) -> list[str]:
        """Return what keeps living workers from working as they should."""
        reasons = []
        if self.restarts.load_error:
            reasons.append(
                "the workers run the earlier code, because the new code can't be loaded; it is tried again:"
                f" {self.restarts.load_error}"
            )
        if self.services.get(RELAY) is not None and (
            lost := _LOST_BY_RELAY.get(self.workers.shared.get(HeaderField.RELAY_STATE))
        ):
            reasons.append(f"the relay of the outbox can't use {lost}")
        for lack, numbers in self._lacking().items():
            who = f"worker {numbers[0]} lacks" if len(numbers) == 1 else f"{len(numbers)} workers lack"
            reasons.append(f"{who} {lack.name.lower()}: {REMEDIES[lack]}")
        for one in self._cut_off():
            verb = "settle messages of" if SETTLED in one["reason"] else "read"
            reasons.append(f"{_who(one)} can't {verb} {one['stream']} / {one['group']}: {one['reason']}")
        for one in self._circuits():
            verb = "start" if 1 < one["workers"] < one["of"] else "starts"
            reasons.append(
                f"nearly every message of {one['stream']} / {one['group']} fails:"
                f" {_who(one)} {verb} only one now and then (circuit open)"
            )
        return reasons


def _relay_state(shared: SharedState) -> str:
    state = shared.get(HeaderField.RELAY_STATE)
    return RelayState(state).name.lower() if state in _RELAY_STATES else "unknown"


def _who(one: dict[str, Any]) -> str:
    return f"{one['workers']} of {counted(one['of'], 'worker')}" if one["workers"] < one["of"] else "every worker"


def _workers_text(slots: Sequence[Slot], state: State) -> str:
    one, several = _DOES[state]
    failing = state in (State.BACKOFF, State.FAILED)
    first = slots[0]
    if len(slots) == 1:
        return f"worker {first.number} {one}" + (f" ({_exit_text(first)})" if failing else "")
    return f"{len(slots)} workers {several}" + (f" (worker {first.number}: {_exit_text(first)})" if failing else "")


def _exit_text(slot: Slot) -> str:
    return exit_text(_exit_entry(slot.last_exit))


def _exit_entry(last_exit: Exit | None) -> dict[str, object] | None:
    if last_exit is None:
        return None
    return {
        "reason": last_exit.reason,
        "code": last_exit.code,
        "signal": last_exit.signal,
        "uptime_s": round(last_exit.uptime_s, 3),
    }


def _service(slot: Slot, shared: SharedState) -> dict[str, Any]:
    beat = BEATS.get(name_of(slot.number)) if slot.living else None
    beat_ns = 0 if beat is None else shared.get(beat)
    return {
        "name": name_of(slot.number),
        "pid": slot.pid or None,
        "state": slot.state.value,
        "restarts": slot.restarts,
        "last_exit": _exit_entry(slot.last_exit),
        "beat_age_s": round((time.monotonic_ns() - beat_ns) / NS, 3) if beat_ns else None,
    }


def _worker(slot: Slot, fields: SharedSlot) -> dict[str, Any]:
    ready_ns, spawn_ns = fields.get(SlotField.READY_NS), fields.get(SlotField.SPAWN_NS)
    return {
        "slot": slot.number,
        "pid": slot.pid or None,
        "state": slot.state.value,
        "incarnation": slot.incarnation,
        "restarts": slot.restarts,
        "last_exit": _exit_entry(slot.last_exit),
        "uptime_s": round(time.monotonic() - slot.spawned_s, 3) if slot.living else None,
        "boot_ms": round((ready_ns - spawn_ns) / 1e6, 1) if slot.living and ready_ns else None,
        "beat_age_s": _age_s(fields, SlotField.BEAT_NS) if slot.living else None,
        "fetch_age_s": _age_s(fields, SlotField.FETCH_NS) if slot.living else None,
        "settle_age_s": _age_s(fields, SlotField.SETTLE_NS) if slot.living else None,
        "in_flight": fields.get(SlotField.IN_FLIGHT) if slot.living else 0,
        "running": fields.get(SlotField.RUNNING) if slot.living else 0,
        # The worker knows of the pause.
        "paused": bool(fields.get(SlotField.PAUSED)) if slot.living else False,
        "waiting": fields.get(SlotField.WAITING) if slot.living else 0,
        "done": fields.get(SlotField.DONE),
        "failed": fields.get(SlotField.FAILED),
        "dead": fields.get(SlotField.DEAD),
        # What the worker is doing and for how long.
        "activity": _activity(fields.get(SlotField.STATE)) if slot.living else None,
        "activity_s": _age_s(fields, SlotField.STATE_SINCE_NS) if slot.living else None,
        # Acks that came after another consumer had settled the message.
        "lost_claim": fields.get(SlotField.LOST_CLAIM),
        # Messages that were deleted from the stream while they were pending.
        "trimmed": fields.get(SlotField.TRIMMED),
        "reconnects": fields.get(SlotField.RECONNECTS),
        # Messages found in the worker's own pending list: a predecessor's, or handed over.
        "adopted": fields.get(SlotField.ADOPTED),
        "batches": fields.get(SlotField.BATCHES),
        "loop_lag_ms_max": round(fields.get(SlotField.LOOP_LAG_NS_MAX) / 1e6, 1) if slot.living else None,
    }


def _activity(state: int) -> str:
    """Return the activity's name; a worker may have overwritten it with garbage."""
    return WorkerState(state).name.lower() if state in _ACTIVITIES else "unknown"


def _age_s(fields: SharedSlot, field_: SlotField) -> float | None:
    """Return the seconds since that time; None if it is not set in this incarnation."""
    at_ns = fields.get(field_)
    return round((time.monotonic_ns() - at_ns) / NS, 3) if at_ns else None
