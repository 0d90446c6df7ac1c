"""How much a consumer may read now: no more than it will have started soon, so that no worker hoards."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from supervisor.core.pace import Pace

if TYPE_CHECKING:
    from supervisor.handling.loader import HandlerSpec
    from supervisor.worker.circuit_guard import CircuitGuard
    from supervisor.worker.executor import Executor
    from supervisor.worker.resources import Resources
    from supervisor.worker.retry_queue import RetryQueue

#: Acks that may wait for confirmation, in batches, before reading stops.
_BACKLOG_BATCHES = 8
#: The rate of finished messages is taken over at least this time.
_RATE_WINDOW_S = 0.02


class ReadLimit:
    """Limits what one consumer reads."""

    def __init__(
        self, spec: HandlerSpec, resources: Resources, executor: Executor, retries: RetryQueue, circuit: CircuitGuard
    ) -> None:
        self._options = spec.options
        self._control = resources.control
        self._settler = resources.settler
        self._executor = executor
        self._retries = retries
        self._circuit = circuit
        self.pace = Pace(spec.options.hold_ms / 1000, spec.options.batch_size)
        #: How many messages have run since the rate was taken, and when that was.
        self._ran = 0
        self._rated_s = time.monotonic()
        self._rate = 0.0

    def observe(self) -> None:
        """Adapt the pace to what was measured since the last read."""
        ran, busy_s, slowest_s = self._executor.measured()
        self.pace.observe(ran, busy_s, slowest_s)
        self._ran += ran
        now_s = time.monotonic()
        if now_s - self._rated_s >= _RATE_WINDOW_S:
            self._rate = self._ran / (now_s - self._rated_s)
            self._rated_s, self._ran = now_s, 0

    def room(self, coming: int = 0) -> int:
        """Return how many more messages may be read; 0 or less: none."""
        options, executor = self._options, self._executor
        if (
            self._control.stopping
            or not self._control.may_start
            or len(self._retries) >= options.max_waiting
            or self._settler.backlog >= options.batch_size * _BACKLOG_BATCHES
        ):
            return 0
        # What is read beyond the handler's concurrency must be started within `hold_ms` at the present rate.
        ahead, running, unstarted, limit = 0, executor.running, executor.unstarted, executor.limit
        if running and self.pace.read_ahead:
            ahead = min(max(options.batch_size, limit), int(self._rate * self.pace.hold_s / 2))
        if unstarted > ahead:
            return 0
        return int(min(limit + ahead - running - unstarted, self._circuit.room)) - coming

    def room_ahead(self, coming: int) -> int:
        """Return how many messages may be read before the `coming` ones are handled; 0 or less: none."""
        if not self.pace.read_ahead:
            return 0
        # While no message waits for anything, pace alone limits; otherwise what would wait behind those that do.
        return self.room(coming) if self._executor.running else self.room() and self._options.batch_size

    def reads_at_once(self, coming: int, outstanding: int) -> int:
        """Return how many full reads may be sent behind the `outstanding` ones before the `coming` are handled.

        Only in a deep backlog, and while no message waits for anything.
        """
        is_deep = coming >= self._options.batch_size and not self._executor.running and self._circuit.closed
        reads = self.pace.reads_max
        return reads - outstanding if is_deep and reads > 1 and self.room() > 0 else 0
