"""Tells people how the pool is getting on: what its start waits for, that it is up, what its end waits for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from supervisor.arbiter import screen
from supervisor.arbiter.services import API, REDIS
from supervisor.core.slot import State

if TYPE_CHECKING:
    from supervisor.arbiter.arbiter import Arbiter


class Announcer:
    """Says each thing once."""

    def __init__(self, arbiter: Arbiter) -> None:
        """Speaks for `arbiter`."""
        self._arbiter = arbiter

    def look(self) -> None:
        """Show the screen when all workers are READY for the first time."""
        slots = self._arbiter.pool.slots
        if slots and all(slot.state is State.READY for slot in slots.values() if slot.wanted):
            self.show()

    def show(self) -> None:
        """Show the screen with as many workers as are READY, until all have been."""
        arbiter = self._arbiter
        if arbiter.began or arbiter.shutdown.begun:
            return
        ready = sum(slot.state is State.READY for slot in arbiter.pool.slots.values())
        arbiter.began = ready == arbiter.pool.size
        if arbiter.began:
            arbiter.notify.ready()
        facts = screen.Facts(
            redis=arbiter.redis,
            embedded=arbiter.services.get(REDIS) is not None,
            ready=ready,
            workers=arbiter.pool.size,
            boot_ms=round((time.monotonic() - arbiter.began_s) * 1000),
            api=arbiter.services.get(API) is not None,
        )
        screen.show(arbiter.loaded, arbiter.specs, facts, arbiter.log)
