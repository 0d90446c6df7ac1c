"""The way out: one monotonic deadline, workers and HTTP service at once, then the keeper, then the server.

The keeper holds the pool's lease. While one worker still works on what is pending, no other pool may take
the name: so the lease goes only when the last worker has.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from supervisor.arbiter.services import API, KEEPER, REDIS
from supervisor.core.restart import DRAIN_TIMEOUT
from supervisor.errors import EXIT_DRAIN, EXIT_OK
from supervisor.shared_state import HeaderField, SlotField

if TYPE_CHECKING:
    from supervisor.arbiter.services import Services
    from supervisor.arbiter.worker_group import WorkerGroup

#: Of the deadline, what the embedded server gets to write its file and leave.
SERVER_S = 2.0
#: But never more than this part of it.
SERVER_PART = 0.2
#: What each of those that leave last gets at least, also when the workers have used up all the time.
LAST_S = 0.4
QUICK = "quick"


class Shutdown:
    """The end of a pool, from the first signal to the last child."""

    def __init__(self, pool: WorkerGroup, services: Services) -> None:
        """Nothing happens before `begin`."""
        self._pool = pool
        self._services = services
        self._until_s = 0.0
        self._ending: list[int] = []
        self.begun = False

    def begin(self, drain_s: float) -> None:
        """Have everything finish within `drain_s`; called again, only an earlier deadline counts."""
        now_s = time.monotonic()
        until_s = now_s + drain_s
        self._until_s = min(until_s, self._until_s) if self.begun else until_s
        if not self.begun:
            self._ending = [slot.number for slot in self._pool.living]
        self.begun = True
        shared = self._pool.shared
        shared.set(HeaderField.SHUTDOWN, 1)
        reserve_s = min(SERVER_S, drain_s * SERVER_PART) if self._services.lives(REDIS) else 0.0
        self._services.leave(API, self._until_s - reserve_s)
        self._pool.stop(self._until_s - reserve_s)
        self._turn()

    def hurry(self) -> None:
        """End all at once; keeper and server leave by themselves, and soon."""
        if not self.begun:
            self.begin(SERVER_S)
        self._until_s = min(self._until_s, time.monotonic() + SERVER_S)
        self._services.end(API)
        self._pool.kill(QUICK)
        self._turn()

    def is_over(self) -> bool:
        """Whether nothing is left; tells keeper and server to go when it is their turn."""
        if not self.begun or self._pool.living:
            return False
        for name in (KEEPER, REDIS):
            self._services.leave(name, max(self._until_s, time.monotonic() + LAST_S))
            self._services.turn()
            if self._services.lives(API, name):
                return False
        return True

    @property
    def exit_code(self) -> int:
        """Whether work was left."""
        return EXIT_DRAIN if any(self._left_work(number) for number in self._ending) else EXIT_OK

    def _left_work(self, number: int) -> bool:
        left = self._pool.slots[number].last_exit
        if left is None:
            return False
        in_flight = self._pool.shared.slot(number).get(SlotField.IN_FLIGHT)
        return left.reason == DRAIN_TIMEOUT or (left.reason == QUICK and in_flight > 0)

    def _turn(self) -> None:
        self._services.turn()
        self._pool.turn()
