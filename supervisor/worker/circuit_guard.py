"""Holds messages back while their handler fails for nearly everything: the circuit breaker at work."""

from __future__ import annotations

import random
import time
from math import inf
from typing import TYPE_CHECKING

from supervisor.core.circuit import WINDOW_S, Circuit, CircuitState

if TYPE_CHECKING:
    from supervisor.handling.loader import HandlerSpec
    from supervisor.shared_consumer import SharedConsumer
    from supervisor.worker.executor import Executor
    from supervisor.worker.resources import Resources
    from supervisor.worker.retry_or_dead_letter import Failures

#: The shortest wait between two looks.
_LOOK_S_MIN = 0.05


class CircuitGuard:
    """The circuit of one handler in one worker."""

    def __init__(
        self, spec: HandlerSpec, resources: Resources, executor: Executor, failures: Failures, marks: SharedConsumer
    ) -> None:
        """Begin with a closed circuit. In a burst it stays closed: a burst must end, whatever fails."""
        self._spec = spec
        self._control = resources.control
        self._faults = resources.faults
        self._executor = executor
        self._failures = failures
        self._marks = marks
        self._enabled = spec.options.circuit_breaker and not resources.burst
        self._circuit = Circuit(time.monotonic(), random.random)
        self._finished = self._failed = self._succeeded = 0
        self._looked_s = time.monotonic()

    @property
    def closed(self) -> bool:
        """Whether all messages may run."""
        return self._circuit.state is CircuitState.CLOSED

    @property
    def room(self) -> float:
        """How many more messages may be taken in hand."""
        if self.closed:
            return inf
        return self._circuit.limit(time.monotonic()) - self._executor.in_hand

    async def run(self) -> None:
        """Watch the outcomes, until cancelled. A handler that never fails costs a comparison for each batch."""
        while self._enabled:
            await self._control.until(self._has_news, self._look_s())
            self._look()

    def _has_news(self) -> bool:
        if self.closed:
            return self._failures.failed_count != self._failed
        return self._executor.finished != self._finished or self._failures.failed_count != self._failed

    def _look_s(self) -> float | None:
        """Return when to look again even without news, in seconds; None: not at all."""
        if self._circuit.state is not CircuitState.OPEN:
            return None
        wait_s = self._circuit.probe_s - time.monotonic()
        return max(_LOOK_S_MIN, wait_s) if wait_s > -_LOOK_S_MIN else None

    def _look(self) -> None:
        """Take the outcomes since the last look into account, and let messages run as the circuit says."""
        failed = self._failures.failed_count
        new_failed, self._failed, self._finished = failed - self._failed, failed, self._executor.finished
        # A message that fails is counted a moment before it is finished, so the difference falls and rises again.
        total = self._finished - failed - self._failures.excused_count
        succeeded, self._succeeded = max(0, total - self._succeeded), max(total, self._succeeded)
        now_s, was_closed = time.monotonic(), self.closed
        if now_s - self._looked_s > WINDOW_S:  # nothing failed for long: only what succeeded lately counts
            succeeded = int(succeeded * WINDOW_S / (now_s - self._looked_s))
        self._looked_s = now_s
        self._circuit.observe(now_s, succeeded, new_failed)
        if self.closed != was_closed:
            self._report(now_s)
        if not (self.closed and was_closed):
            self._executor.hold_to(self._circuit.limit(now_s))
            self._control.notify()

    def _report(self, now_s: float) -> None:
        """Log that the circuit has opened or closed, and note it in shared memory."""
        handler, stream, group = self._spec.name, self._spec.stream, self._spec.group
        if self.closed:
            self._marks.set_circuit(0)
            open_s = round(now_s - self._circuit.opened_s, 1)
            self._faults.log.info("circuit closed", handler=handler, stream=stream, group=group, open_s=open_s)
            return
        self._marks.set_circuit(time.monotonic_ns())
        error = self._failures.last_error
        if error is not None:
            self._faults("circuit opened", error, key=handler, handler=handler, stream=stream, group=group)
