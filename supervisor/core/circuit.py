"""The circuit breaker of a handler: stops its messages while nearly all of them fail. Pure.

Then what the handler uses is away, and more attempts would only be used up.

- closed: messages run. The circuit opens when nearly all of them have failed for some seconds.
- open: no message is started. After a while, one is, as a probe.
- half open: the probe succeeded, so a few run, and twice as many after each round that went well. When enough go well
  the circuit closes; when they fail it opens again, for longer.

A message that waits for the circuit uses up no attempt.
"""

from collections.abc import Callable
from enum import StrEnum
from math import inf

from supervisor.core.backoff import backoff_s

#: The outcomes of the last WINDOW_S to 2 × WINDOW_S count.
WINDOW_S = 5.0
#: With fewer failures, a circuit stays closed.
FAILURES_MIN = 20
#: The share of failures at which it opens.
OPENS_AT = 0.95
#: It opens after this time: by then a row of bad messages has been given up, while an outage still lasts.
OPENS_AFTER_S = 5.0
#: The first wait for a probe, and the longest.
PROBE_BASE_S = 1.0
PROBE_MAX_S = 10.0
#: It closes when more than this many messages may run at once.
CLOSES_ABOVE = 32


class CircuitState(StrEnum):
    """What the circuit lets through: all, nothing but a probe, or a few."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Circuit:
    """The breaker of one handler in one worker. All times are of one monotonic clock."""

    def __init__(self, now_s: float, random: Callable[[], float]) -> None:
        """Begin closed. `random` returns numbers in [0, 1)."""
        self._random = random
        self.state = CircuitState.CLOSED
        #: When it opened, or began to: it stays through half-open states.
        self.opened_s = now_s
        #: When a probe may start, while it is open.
        self.probe_s = inf
        self._openings = 0
        self._allowed = 1
        self._begin_window(now_s)

    def limit(self, now_s: float) -> float:
        """Return how many messages may run at once."""
        if self.state is CircuitState.CLOSED:
            return inf
        if self.state is CircuitState.OPEN:
            return 1 if now_s >= self.probe_s else 0
        return self._allowed

    def observe(self, now_s: float, succeeded: int, failed: int) -> None:
        """Take the outcomes since the last call into account."""
        if self.state is CircuitState.CLOSED:
            self._count(now_s, succeeded, failed)
            if self._failed < OPENS_AT * (self._failed + self._succeeded) or not self._failed:
                self._failing_s = inf
            else:
                self._failing_s = min(self._failing_s, now_s)
            if self._failed >= FAILURES_MIN and now_s - self._failing_s >= OPENS_AFTER_S:
                self.opened_s = now_s
                self._open(now_s)
            return
        if self.state is CircuitState.OPEN and now_s < self.probe_s:
            return  # these were started before it opened
        self._succeeded += succeeded
        self._failed += failed
        if self._failed and self._failed >= self._succeeded:
            self._open(now_s)
        elif self._succeeded >= self._allowed:
            self._widen(now_s)

    def _open(self, now_s: float) -> None:
        self._openings += 1
        self.state = CircuitState.OPEN
        self.probe_s = now_s + backoff_s(self._openings, PROBE_BASE_S, PROBE_MAX_S, self._random)
        self._allowed = 1
        self._begin_window(now_s)

    def _widen(self, now_s: float) -> None:
        self.state, self.probe_s = CircuitState.HALF_OPEN, inf
        self._allowed *= 2
        self._begin_window(now_s)
        if self._allowed > CLOSES_ABOVE:
            self.state = CircuitState.CLOSED
            self._openings = 0

    def _begin_window(self, now_s: float) -> None:
        self._began_s = now_s
        self._succeeded = self._failed = 0
        self._recent = (0, 0)
        #: Since when nearly everything fails.
        self._failing_s = inf

    def _count(self, now_s: float, succeeded: int, failed: int) -> None:
        """Add to a window of two halves, of which the older is dropped in time."""
        if now_s - self._began_s >= WINDOW_S:
            is_stale = now_s - self._began_s >= 2 * WINDOW_S
            kept = (0, 0) if is_stale else self._recent
            self._failing_s = inf if is_stale else self._failing_s
            self._began_s, self._recent = now_s, (0, 0)
            self._succeeded, self._failed = kept
        self._recent = self._recent[0] + succeeded, self._recent[1] + failed
        self._succeeded += succeeded
        self._failed += failed
