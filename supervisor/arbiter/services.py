"""The children that are no workers: redis-server, keeper, HTTP service. One slot each."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from supervisor.arbiter.child_group import ChildGroup
from supervisor.core.liveness import NS
from supervisor.core.slot import Heartbeat, Slot, State, kill
from supervisor.shared_state import HeaderField

if TYPE_CHECKING:
    from collections.abc import Callable

    from supervisor.shared_state import SharedState

REDIS = "redis"
KEEPER = "keeper"
API = "api"
#: The number of a service's slot is its place here.
NAMES = (REDIS, KEEPER, API)
#: A keeper that has not finished a turn for this long is stuck, whatever Redis does: its own timeouts are shorter.
KEEPER_QUIET_S = 60.0
#: The HTTP service imports much, and on a machine that is busy this takes its time.
BOOT_S = 60.0


class Services(ChildGroup):
    """The services that were added."""

    noun = "service"
    turn_s = 5.0

    def __init__(self, shared: SharedState, *args: Any, **options: Any) -> None:
        """The keeper beats in shared memory; the rest is `ChildGroup`'s."""
        super().__init__(*args, **options)
        self._shared = shared
        self._spawns: dict[int, Callable[[], int]] = {}
        self._are_ready: dict[int, Callable[[], bool]] = {}

    def add(
        self, name: str, spawn: Callable[[], int], slot: Slot | None = None, is_ready: Callable[[], bool] = lambda: True
    ) -> None:
        """Have this service run from the next turn on, or go on with the process of a predecessor."""
        number = NAMES.index(name)
        self._spawns[number] = spawn
        self._are_ready[number] = is_ready
        self.adopt(slot or Slot(number))

    def get(self, name: str) -> Slot | None:
        """The service's slot, None when there is no such service in this pool."""
        return self.slots.get(NAMES.index(name))

    def spawn(self, number: int) -> int:
        """As it was told with `add`."""
        return self._spawns[number]()

    def sign(self, slot: Slot) -> Heartbeat:
        """The keeper beats, the HTTP service says when it serves, the server is watched by nobody here."""
        if NAMES[slot.number] != KEEPER:
            return Heartbeat(ready=self._are_ready[slot.number]())
        beat_ns = max(self._shared.get(HeaderField.KEEPER_BEAT_NS), int(slot.spawned_s * NS))
        return self._liveness.sign(slot.number, ready=True, beat_ns=beat_ns, deadline_ns=0)

    def has_left(self, before: Slot, after: Slot) -> None:
        """One that has left for good is none of the pool's services any more."""
        if after.state is State.EMPTY and not after.wanted:
            del self.slots[before.number]

    def name(self, number: int) -> dict[str, Any]:
        """By its word."""
        return {"service": NAMES[number]}

    def process_name(self, number: int) -> str:
        """The same word."""
        return NAMES[number]

    def restart(self, name: str, drain_s: float) -> None:
        """Have the service's child leave and a new one take its place."""
        if self.get(name) is not None:
            self.drain(NAMES.index(name), time.monotonic() + drain_s)

    def leave(self, name: str, until_s: float) -> None:
        """Have this service finish by then, for good."""
        slot = self.get(name)
        if slot is not None:
            self.slots[slot.number] = replace(slot, wanted=False)
            self.drain(slot.number, until_s)

    def end(self, name: str) -> None:
        """End this service at once."""
        slot = self.get(name)
        if slot is not None:
            slot = replace(slot, wanted=False)
            self._do(slot.number, *kill(slot, "quick", time.monotonic(), dump=False))

    def lives(self, *names: str) -> bool:
        """Whether one of these has a process."""
        return any(slot.living for slot in self.slots.values() if NAMES[slot.number] in names)
