"""Measures how long a handler's messages hold the event loop.

A coroutine is timed step by step: what it waits for in between does not count. The cost is one clock
reading a step, and many messages that never wait share a step.
"""

from __future__ import annotations

from collections.abc import Coroutine
from time import monotonic
from typing import Any


class Meter:
    """What was measured since the last `take`."""

    __slots__ = ("busy_s", "ran", "slowest_s", "step_began_s", "steps")

    def __init__(self) -> None:
        self.ran = 0
        self.busy_s = 0.0
        self.slowest_s = 0.0
        #: Counts steps: a message that began and ended within one never waited.
        self.steps = 0
        self.step_began_s = 0.0

    def take(self) -> tuple[int, float, float]:
        """(messages run, seconds the loop was held, longest hold of one message), and start anew."""
        taken = self.ran, self.busy_s, self.slowest_s
        self.ran, self.busy_s, self.slowest_s = 0, 0.0, 0.0
        return taken


class Timed(Coroutine[Any, Any, None]):
    """A coroutine whose steps are metered; a Task drives it like any other."""

    __slots__ = ("_coroutine", "_meter")

    def __init__(self, coroutine: Coroutine[Any, Any, None], meter: Meter) -> None:
        self._coroutine = coroutine
        self._meter = meter

    def send(self, value: Any, /) -> Any:
        """Run to the next wait."""
        began_s = self._begin()
        try:
            return self._coroutine.send(value)
        finally:
            self._meter.busy_s += monotonic() - began_s

    def throw(self, *error: Any) -> Any:
        """Run to the next wait from an exception."""
        began_s = self._begin()
        try:
            return self._coroutine.throw(*error)
        finally:
            self._meter.busy_s += monotonic() - began_s

    def close(self) -> None:
        """End the coroutine."""
        self._coroutine.close()

    def __await__(self) -> Any:
        """Only to be a whole Coroutine: it is driven by a Task."""
        return self._coroutine.__await__()

    def _begin(self) -> float:
        began_s = monotonic()
        self._meter.steps += 1
        self._meter.step_began_s = began_s
        return began_s
