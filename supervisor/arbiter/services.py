"""The children other than workers: redis-server, keeper, relay, the processes of the HTTP service. One slot each."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from supervisor.arbiter.restart_children import ChildGroup
from supervisor.arbiter.spawn import API, KEEPER, REDIS, RELAY, Spawner, api_name
from supervisor.core.liveness import NS
from supervisor.core.slot import Heartbeat, Slot, State, kill
from supervisor.settings.model import Settings
from supervisor.shared_state import HeaderField, SharedState

#: The number of a service's slot is its index here. More processes of the HTTP service have the numbers behind it.
NAMES = (REDIS, KEEPER, RELAY, API)
#: A keeper or relay that has not completed a cycle for this long is stuck. Its own Redis timeouts are shorter.
KEEPER_SILENT_S = 60.0
#: The services that beat, and where.
BEATS = {KEEPER: HeaderField.KEEPER_BEAT_NS, RELAY: HeaderField.RELAY_BEAT_NS}
#: The HTTP service has many imports, which take long on a busy machine.
BOOT_S = 60.0


def kind_of(number: int) -> str:
    """Return which service runs in this slot."""
    return NAMES[min(number, len(NAMES) - 1)]


def name_of(number: int) -> str:
    """Return the name of the process in this slot."""
    return NAMES[number] if number < len(NAMES) else api_name(number - NAMES.index(API))


class ServiceGroup(ChildGroup):
    """The services of the pool."""

    noun = "service"
    check_interval_s = 5.0

    def __init__(self, shared: SharedState, *args: Any, **options: Any) -> None:
        """`shared` has the beats of keeper and relay; the rest is `ChildGroup`'s."""
        super().__init__(*args, **options)
        self._shared = shared
        self._spawns: dict[int, Callable[[], int]] = {}
        self._ready_checks: dict[int, Callable[[], bool]] = {}
        #: Slot -> (pid of the child that a restart replaces, its time to finish).
        self._to_replace: dict[int, tuple[int, float]] = {}

    def add(self, number: int, spawner: Spawner, slot: Slot | None = None) -> None:
        """Run the service of this slot from the next check on; `slot` continues one of an earlier image."""
        if kind_of(number) == API:
            process = number - NAMES.index(API)
            self._spawns[number] = partial(spawner.api, process)
            self._ready_checks[number] = partial(spawner.http.is_served, process)
        else:
            spawns = {REDIS: spawner.redis, KEEPER: spawner.keeper, RELAY: spawner.relay}
            self._spawns[number] = spawns[kind_of(number)]
        self.adopt(slot or Slot(number))

    def apply_settings(self, settings: Settings, spawner: Spawner) -> None:
        """Run as many processes of the services that may be turned off as the settings ask for."""
        wanted = {RELAY: int(bool(settings.outbox.url)), API: settings.api.processes if settings.api.enabled else 0}
        for name, processes in wanted.items():
            self.stop_service(name, time.monotonic() + settings.pool.drain_s, keep=processes)
            for number in range(NAMES.index(name), NAMES.index(name) + processes):
                if number in self.slots:  # its child may still be finishing after it was turned off
                    self.slots[number] = replace(self.slots[number], wanted=True)
                else:
                    self.add(number, spawner)

    def get(self, name: str) -> Slot | None:
        """Return the slot of the service's first process; None if the pool has no such service."""
        return self.slots.get(NAMES.index(name))

    def all_of(self, name: str) -> list[Slot]:
        """Return the slots of the service's processes."""
        return [slot for slot in self.slots.values() if kind_of(slot.number) == name]

    def spawn(self, number: int) -> int:
        """Start the service as `add` defined it."""
        return self._spawns[number]()

    def heartbeat(self, slot: Slot) -> Heartbeat:
        """Return the beat of the keeper or the relay; the other services only report that they are ready."""
        beat = BEATS.get(kind_of(slot.number))
        if beat is None:
            is_ready = self._ready_checks.get(slot.number)
            return Heartbeat(ready=is_ready is None or is_ready())
        beat_ns = max(self._shared.get(beat), int(slot.spawned_s * NS))
        return self._liveness.heartbeat(slot.number, ready=True, beat_ns=beat_ns, deadline_ns=0)

    def after_exit(self, before: Slot, after: Slot) -> None:
        """Remove a service that has been stopped."""
        if after.state is State.EMPTY and not after.wanted:
            del self.slots[before.number]

    def log_fields(self, number: int) -> dict[str, Any]:
        """Return the name of the process."""
        return {"service": name_of(number)}

    def process_name(self, number: int) -> str:
        """Return the name of the process."""
        return name_of(number)

    def failed_first_start(self, name: str) -> bool:
        """Return whether the service could not start with this configuration, and has never run."""
        return any(slot.state is State.FAILED and slot.incarnation == 1 for slot in self.all_of(name))

    def check(self) -> None:
        """Look at every slot, and continue a restart."""
        super().check()
        if not self._checking:
            self._replace_next()

    def restart(self, name: str, drain_s: float) -> None:
        """Replace the service's children one after the other, or start those that could not start last time."""
        for slot in self.all_of(name):
            if slot.living:
                self._to_replace[slot.number] = slot.pid, drain_s
            else:
                self.start_now(slot.number)
        self._replace_next()

    def _replace_next(self) -> None:
        """Drain the next child that a restart replaces, if all other processes of its service serve."""
        for number, (pid, drain_s) in list(self._to_replace.items()):
            slot = self.slots.get(number)
            if slot is None or not slot.living or slot.pid != pid:
                del self._to_replace[number]
            elif all(other.state is State.READY for other in self.all_of(kind_of(number)) if other is not slot):
                self.drain(number, time.monotonic() + drain_s)

    def stop_service(self, name: str, until_s: float, *, keep: int = 0) -> None:
        """Stop this service, but for its first `keep` processes; its children must have exited by `until_s`."""
        for slot in self.all_of(name):
            if slot.number - NAMES.index(name) < keep:
                continue
            if slot.living:
                self.slots[slot.number] = replace(slot, wanted=False)
                self.drain(slot.number, until_s)
            else:
                self._remove(slot.number)

    def kill_service(self, name: str) -> None:
        """Kill this service at once; it is not started again."""
        for slot in self.all_of(name):
            if not slot.living:
                self._remove(slot.number)
                continue
            self._apply(slot.number, *kill(replace(slot, wanted=False), "quick", time.monotonic(), dump=False))

    def _remove(self, number: int) -> None:
        """Forget a service that has no process and must not get one."""
        self._stack_dumps.drop(self.process_name(number))
        del self.slots[number]

    def any_living(self, *names: str) -> bool:
        """Return whether one of these services has a process."""
        return any(slot.living for slot in self.slots.values() if kind_of(slot.number) in names)
