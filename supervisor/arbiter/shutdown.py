"""The shutdown: one monotonic deadline; workers and HTTP service stop first, then relay and keeper, then Redis.

The keeper holds the pool's lease. No other pool may take the name while a worker still works on pending
messages, so the keeper stops after the last worker. So does the relay: it publishes what the workers have left in the
outbox.
"""

import time
from typing import Any

from supervisor.arbiter.loop import Loop
from supervisor.arbiter.services import ServiceGroup
from supervisor.arbiter.spawn import API, KEEPER, REDIS, RELAY
from supervisor.arbiter.worker_group import WorkerGroup
from supervisor.control.exit_report import WORK_LEFT
from supervisor.core.restart_policy import DRAIN_TIMEOUT, ExitKind
from supervisor.errors import EXIT_DRAIN, EXIT_OK
from supervisor.shared_state import HeaderField, SlotField, WorkerState

#: The part of the deadline that the embedded server gets to write its file and exit, in seconds and at most as a share.
SERVER_S = 2.0
SERVER_SHARE = 0.2
#: What keeper and server get at least, even if the workers have used up the deadline.
LAST_S = 0.4
#: A drain that takes longer than this is explained.
PATIENCE_S = 0.3
#: The kill reason in a quick stop.
QUICK = "quick"


class Shutdown:
    """The end of a pool, from the first signal to the last child."""

    def __init__(self, workers: WorkerGroup, services: ServiceGroup, loop: Loop, log: Any) -> None:
        self._workers = workers
        self._services = services
        self._loop = loop
        self._log = log
        self._until_s = 0.0
        #: What of it belongs to the server.
        self._reserve_s = 0.0
        self._draining: list[int] = []
        self.begun = False

    def drain(self, reason: str, drain_s: float) -> None:
        """Drain the pool and log what it waits for."""
        self._log.info("draining", reason=reason, workers=len(self._workers.living) or None)
        if not self.begun:
            self._loop.call_at(time.monotonic() + PATIENCE_S, lambda: self._log_waiting(drain_s))
        self.begin(drain_s)

    def begin(self, drain_s: float) -> None:
        """Have everything exit within `drain_s`; if called again, only an earlier deadline counts."""
        until_s = time.monotonic() + drain_s
        self._until_s = min(until_s, self._until_s) if self.begun else until_s
        if not self.begun:
            self._draining = [slot.number for slot in self._workers.living]
        self.begun = True
        self._workers.shared.set(HeaderField.SHUTDOWN, 1)
        self._reserve_s = min(SERVER_S, drain_s * SERVER_SHARE) if self._services.any_living(REDIS) else 0.0
        self._services.stop_service(API, self._until_s - self._reserve_s)
        self._workers.stop(self._until_s - self._reserve_s)
        self._check()

    def kill(self) -> None:
        """Kill workers, HTTP service and relay at once; keeper and server exit soon by themselves."""
        if not self.begun:
            self.begin(SERVER_S)
        self._until_s = min(self._until_s, time.monotonic() + SERVER_S)
        for name in (API, RELAY):
            self._services.kill_service(name)
        self._workers.kill(QUICK)
        self._check()

    def advance(self) -> bool:
        """Stop relay, keeper and server in this order, after the workers; return whether no child is left."""
        if not self.begun or self._workers.living:
            return False
        self._services.stop_service(RELAY, max(self._until_s - self._reserve_s, time.monotonic() + LAST_S))
        for name in (KEEPER, REDIS):
            self._services.stop_service(name, max(self._until_s, time.monotonic() + LAST_S))
            self._services.check()
            if self._services.any_living(API, RELAY, name):
                return False
        return True

    @property
    def exit_code(self) -> int:
        """EXIT_DRAIN if a worker ended with unfinished messages, or at the deadline in a project's lifespan."""
        return EXIT_DRAIN if any(self._has_left_work(number) for number in self._draining) else EXIT_OK

    def log_end(self) -> None:
        """Log that the last child is gone."""
        self._log.info("stopped", hint=None if self.exit_code == EXIT_OK else WORK_LEFT)

    def _has_left_work(self, number: int) -> bool:
        fields, last_exit = self._workers.shared.slot(number), self._workers.slots[number].last_exit
        if last_exit is None:
            return False
        if fields.get(SlotField.REFUSED):  # a drain does not wait for it
            return True
        timed_out = last_exit.reason == DRAIN_TIMEOUT
        if last_exit.kind is ExitKind.DONE and not timed_out:
            return False
        return (timed_out and fields.get(SlotField.STATE) == WorkerState.LIFESPAN_END) or fields.has_unfinished

    def _log_waiting(self, limit_s: float) -> None:
        waiting = [slot.number for slot in self._workers.living if not slot.kill_reason]
        in_flight = [self._workers.shared.slot(number).get(SlotField.IN_FLIGHT) for number in waiting]
        if any(in_flight):
            self._log.info(
                "waiting for workers",
                workers=sum(map(bool, in_flight)),
                messages=sum(in_flight),
                limit_s=limit_s,
                hint="Ctrl-C again stops at once",
            )

    def _check(self) -> None:
        self._services.check()
        self._workers.check()
