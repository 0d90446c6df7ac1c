"""The children other than workers: redis-server, keeper, HTTP service. One slot each."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from supervisor.arbiter.restart_children import ChildGroup
from supervisor.arbiter.spawn import API, KEEPER, REDIS
from supervisor.core.liveness import NS
from supervisor.core.slot import Heartbeat, Slot, State, kill
from supervisor.shared_state import HeaderField, SharedState

#: The number of a service's slot is its index here.
NAMES = (REDIS, KEEPER, API)
#: A keeper that has not completed a cycle for this long is stuck. Its own Redis timeouts are shorter.
KEEPER_SILENT_S = 60.0
#: The HTTP service has many imports, which take long on a busy machine.
BOOT_S = 60.0


class ServiceGroup(ChildGroup):
    """The services of the pool."""

    noun = "service"
    check_interval_s = 5.0

    def __init__(self, shared: SharedState, *args: Any, **options: Any) -> None:
        """`shared` has the keeper's beat; the rest is `ChildGroup`'s."""
        super().__init__(*args, **options)
        self._shared = shared
        self._spawns: dict[int, Callable[[], int]] = {}
        self._ready_checks: dict[int, Callable[[], bool]] = {}

    def add(
        self, name: str, spawn: Callable[[], int], slot: Slot | None = None, is_ready: Callable[[], bool] = lambda: True
    ) -> None:
        """Run this service from the next check on; `slot` continues one of an earlier image of this process."""
        number = NAMES.index(name)
        self._spawns[number] = spawn
        self._ready_checks[number] = is_ready
        self.adopt(slot or Slot(number))

    def get(self, name: str) -> Slot | None:
        """Return the service's slot; None if the pool has no such service."""
        return self.slots.get(NAMES.index(name))

    def spawn(self, number: int) -> int:
        """Start the service as `add` defined it."""
        return self._spawns[number]()

    def heartbeat(self, slot: Slot) -> Heartbeat:
        """Return the keeper's beat; the other services only report that they are ready."""
        if NAMES[slot.number] != KEEPER:
            return Heartbeat(ready=self._ready_checks[slot.number]())
        beat_ns = max(self._shared.get(HeaderField.KEEPER_BEAT_NS), int(slot.spawned_s * NS))
        return self._liveness.heartbeat(slot.number, ready=True, beat_ns=beat_ns, deadline_ns=0)

    def after_exit(self, before: Slot, after: Slot) -> None:
        """Remove a service that has been stopped."""
        if after.state is State.EMPTY and not after.wanted:
            del self.slots[before.number]

    def log_fields(self, number: int) -> dict[str, Any]:
        """Return the service's name."""
        return {"service": NAMES[number]}

    def process_name(self, number: int) -> str:
        """Return the service's name."""
        return NAMES[number]

    def has_failed_at_first(self, name: str) -> bool:
        """Return whether the service could not start with this configuration, and has never run."""
        slot = self.get(name)
        return slot is not None and slot.state is State.FAILED and slot.incarnation == 1

    def restart(self, name: str, drain_s: float) -> None:
        """Replace the service's child, or start one when the last could not start."""
        slot = self.get(name)
        if slot is not None and slot.living:
            self.drain(slot.number, time.monotonic() + drain_s)
        elif slot is not None:
            self.start_now(slot.number)

    def stop_service(self, name: str, until_s: float) -> None:
        """Stop this service; its child must have exited by `until_s`."""
        slot = self.get(name)
        if slot is not None:
            self.slots[slot.number] = replace(slot, wanted=False)
            self.drain(slot.number, until_s)

    def kill_service(self, name: str) -> None:
        """Kill this service at once."""
        slot = self.get(name)
        if slot is not None:
            self._apply(slot.number, *kill(replace(slot, wanted=False), "quick", time.monotonic(), dump=False))

    def any_living(self, *names: str) -> bool:
        """Return whether one of these services has a process."""
        return any(slot.living for slot in self.slots.values() if NAMES[slot.number] in names)
