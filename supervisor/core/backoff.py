"""Exponential backoff with jitter."""

from collections.abc import Callable

#: Spreads retries, so that processes that failed together do not come back together.
JITTER = 0.2
_DOUBLINGS_MAX = 60


def backoff_s(tries: int, base_s: float, max_s: float, random: Callable[[], float]) -> float:
    """Return the wait after the `tries`-th failure: `base_s` × 2^(tries - 1), at most `max_s`, ±20 %.

    `random` returns numbers in [0, 1).
    """
    plain = min(max_s, base_s * 2.0 ** min(max(tries - 1, 0), _DOUBLINGS_MAX))
    return plain * (1 - JITTER + 2 * JITTER * random())
