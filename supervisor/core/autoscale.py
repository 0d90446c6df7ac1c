"""Decides how many workers there should be, from the time that they need to clear the backlog. Pure.

1. Scale up when clearing the backlog would have taken too long for several seconds: in proportion to the
   excess, at most doubling at each step.
2. Scale down by one worker when the backlog has been almost empty for a long time. A step down that has
   to be reverted doubles the wait before the next one, so that a pool at its limit does not oscillate.
"""

import math
from dataclasses import dataclass, replace

#: How long the backlog must be too long before a step up, and how long new workers get to show an effect.
UP_AFTER_S = 3.0
#: How long the backlog must be almost empty before a step down.
DOWN_AFTER_S = 60.0
DOWN_AFTER_S_MAX = 960.0
#: A step up later than this after a step down answers a new load and does not revert that step.
REVERT_WINDOW_S = 3600.0
#: "Almost empty": this share of the time that is too long.
LOW_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Bounds:
    """The configured range."""

    workers_min: int
    workers_max: int
    #: A backlog that takes longer than this needs more workers.
    clear_s: float


@dataclass(frozen=True, slots=True)
class Trend:
    """The history that `decide` works from."""

    high_since_s: float | None = None
    low_since_s: float | None = None
    #: When the last step was made, if it was a step down.
    went_down_s: float | None = None
    down_after_s: float = DOWN_AFTER_S


def clear_time_s(backlog: int, done_per_s: float) -> float:
    """Return how long the current workers need for the backlog; infinity if nothing completes."""
    if backlog <= 0:
        return 0.0
    return backlog / done_per_s if done_per_s > 0 else math.inf


def decide(trend: Trend, workers: int, clear_s: float, bounds: Bounds, now_s: float) -> tuple[Trend, int]:
    """Return the updated trend and the number of workers that there should be."""
    inside = min(max(workers, bounds.workers_min), bounds.workers_max)
    if inside != workers:
        return replace(trend, high_since_s=None, low_since_s=None), inside
    if clear_s > bounds.clear_s:
        return _high(trend, workers, clear_s, bounds, now_s)
    if clear_s <= bounds.clear_s * LOW_SHARE:
        return _low(trend, workers, bounds, now_s)
    return replace(trend, high_since_s=None, low_since_s=None), workers


def _high(trend: Trend, workers: int, clear_s: float, bounds: Bounds, now_s: float) -> tuple[Trend, int]:
    since_s = now_s if trend.high_since_s is None else trend.high_since_s
    trend = replace(trend, high_since_s=since_s, low_since_s=None)
    if now_s - since_s < UP_AFTER_S or workers >= bounds.workers_max:
        return trend, workers
    factor = min(2.0, clear_s / bounds.clear_s)
    target = min(bounds.workers_max, max(workers + 1, math.ceil(workers * factor)))
    return Trend(high_since_s=now_s, down_after_s=_next_down_after_s(trend, now_s)), target


def _next_down_after_s(trend: Trend, now_s: float) -> float:
    """Return the wait before the next step down, now that workers are added."""
    if trend.went_down_s is None:
        return trend.down_after_s
    reverted = now_s - trend.went_down_s < REVERT_WINDOW_S
    return min(DOWN_AFTER_S_MAX, trend.down_after_s * 2) if reverted else DOWN_AFTER_S


def _low(trend: Trend, workers: int, bounds: Bounds, now_s: float) -> tuple[Trend, int]:
    since_s = now_s if trend.low_since_s is None else trend.low_since_s
    trend = replace(trend, high_since_s=None, low_since_s=since_s)
    if now_s - since_s < trend.down_after_s or workers <= bounds.workers_min:
        return trend, workers
    return replace(trend, low_since_s=now_s, went_down_s=now_s), workers - 1
