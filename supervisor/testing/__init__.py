"""For tests of handlers: `deliver` gives one message to a handler, `TestPool` runs handlers on a real Redis server."""

from supervisor.testing.deliveries import deliver
from supervisor.testing.outcomes import Dead, Done, Emitted, Outcome, Retried
from supervisor.testing.pool import NotSettledError, TestPool, assert_nothing_lost

__all__ = [
    "Dead",
    "Done",
    "Emitted",
    "NotSettledError",
    "Outcome",
    "Retried",
    "TestPool",
    "assert_nothing_lost",
    "deliver",
]
