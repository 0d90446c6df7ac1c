"""Says in the log which workers are still in the project's `@worker_lifespan`, since nothing else would show it."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.core.liveness import NS
from supervisor.core.slot import Limits
from supervisor.handling.loader import HandlerSpec
from supervisor.shared_state import SlotField, WorkerState

#: A lifespan that takes longer is logged.
PATIENCE_S = 1.0
_PHASES: dict[int, str] = {WorkerState.LIFESPAN_START: "start", WorkerState.LIFESPAN_END: "end"}


@dataclass(slots=True)
class LifespanWaits:
    """Checks how long workers have been in a lifespan."""

    workers: WorkerGroup
    specs: Iterable[HandlerSpec]
    log: Any
    limits: Limits
    #: (slot, incarnation, phase) that was logged.
    _logged: set[tuple[int, int, str]] = field(default_factory=set)

    def check(self) -> None:
        """Log each wait once, those of several workers together."""
        waiting: dict[str, list[tuple[int, int, str]]] = {}
        current = set()
        for slot in self.workers.living:
            fields = self.workers.shared.slot(slot.number)
            phase = _PHASES.get(fields.get(SlotField.STATE))
            if phase is None:
                continue
            wait = slot.number, slot.incarnation, phase
            current.add(wait)
            since_s = (time.monotonic_ns() - fields.get(SlotField.STATE_SINCE_NS)) / NS
            if since_s >= PATIENCE_S and wait not in self._logged:
                waiting.setdefault(phase, []).append(wait)
        self._logged &= current
        for phase, waits in waiting.items():
            self._logged.update(waits)
            names = dict.fromkeys(lifespan.name for spec in self.specs for lifespan in spec.lifespans)
            limit_s = self.limits.boot_s if phase == "start" else self.limits.drain_s
            slots = [number for number, _, _ in waits]
            self.log.info("waiting for lifespan", lifespans=list(names), phase=phase, slots=slots, limit_s=limit_s)
