"""The way out: one monotonic deadline, all children at once, the server last."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from supervisor.arbiter.services import API, KEEPER, REDIS
from supervisor.board import Head, Word
from supervisor.core.restart import OVERRAN
from supervisor.errors import EXIT_DRAIN, EXIT_OK

if TYPE_CHECKING:
    from supervisor.arbiter.pool import Pool
    from supervisor.arbiter.services import Services

#: Of the deadline, what the embedded server gets to write its file and leave.
SERVER_S = 2.0
#: But never more than this part of it.
SERVER_PART = 0.2
QUICK = "quick"


class Shutdown:
    """The end of a pool, from the first signal to the last child."""

    def __init__(self, pool: Pool, services: Services) -> None:
        """Nothing happens before `begin`."""
        self._pool = pool
        self._services = services
        self._until_s = 0.0
        self._ending: list[int] = []
        self._server_told = False
        self.begun = False

    def begin(self, drain_s: float) -> None:
        """Have everything finish within `drain_s`; called again, only an earlier deadline counts."""
        now_s = time.monotonic()
        until_s = now_s + drain_s
        self._until_s = min(until_s, self._until_s) if self.begun else until_s
        if not self.begun:
            self._ending = [slot.number for slot in self._pool.living]
        self.begun = True
        board = self._pool.board
        board.set(Head.SHUTDOWN, 1)
        reserve_s = min(SERVER_S, drain_s * SERVER_PART) if self._services.lives(REDIS) else 0.0
        for name in (API, KEEPER):
            self._services.leave(name, self._until_s - reserve_s)
        self._pool.stop(self._until_s - reserve_s)
        self._turn()

    def hurry(self) -> None:
        """End all at once."""
        if not self.begun:
            self.begin(SERVER_S)
        self._until_s = min(self._until_s, time.monotonic() + SERVER_S)
        for name in (API, KEEPER):
            self._services.end(name)
        self._pool.kill(QUICK)
        self._turn()

    def is_over(self) -> bool:
        """Whether nothing is left; tells the server to go when it is its turn."""
        if not self.begun or self._pool.living or self._services.lives(API, KEEPER):
            return False
        if not self._services.lives(REDIS):
            return True
        if not self._server_told:
            self._server_told = True
            self._services.leave(REDIS, max(self._until_s, time.monotonic() + SERVER_S * SERVER_PART))
            self._services.turn()
        return False

    @property
    def exit_code(self) -> int:
        """Whether work was left."""
        return EXIT_DRAIN if any(self._left_work(number) for number in self._ending) else EXIT_OK

    def _left_work(self, number: int) -> bool:
        left = self._pool.slots[number].last_exit
        if left is None:
            return False
        in_flight = self._pool.board.slot(number).get(Word.IN_FLIGHT)
        return left.reason == OVERRAN or (left.reason == QUICK and in_flight > 0)

    def _turn(self) -> None:
        self._services.turn()
        self._pool.turn()
