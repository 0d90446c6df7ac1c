"""How many workers there should be, by the time that they would need to clear the backlog. Pure.

1. Up when the backlog would take too long, and has for a while: as many as the time is too long, at
   most twice as many at a step.
2. Down, one at a time, when it has been nearly nothing for a long while. A step down that had to be
   taken back makes the next one wait twice as long: so a pool at its limit does not swing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

#: The backlog must have been too long for this long; then workers come, and get as long to show what they do.
UP_AFTER_S = 3.0
#: It must have been nearly nothing for this long.
DOWN_AFTER_S = 60.0
DOWN_AFTER_S_MAX = 960.0
#: Workers that come back later than this after a step down answer another load: the step was right.
TAKEN_BACK_S = 3600.0
#: "Nearly nothing": this share of the time that is too long.
LOW_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the operator allows."""

    workers_min: int
    workers_max: int
    #: A backlog that takes longer than this calls for more workers.
    clear_s: float


@dataclass(frozen=True, slots=True)
class Trend:
    """What has been seen so far."""

    high_since_s: float | None = None
    low_since_s: float | None = None
    #: When the last step was made, if it was one down.
    went_down_s: float | None = None
    down_after_s: float = DOWN_AFTER_S


def clear_time_s(backlog: int, done_per_s: float) -> float:
    """How long the present workers need; infinity when nothing gets done."""
    if backlog <= 0:
        return 0.0
    return backlog / done_per_s if done_per_s > 0 else math.inf


def decide(trend: Trend, workers: int, clear_s: float, bounds: Bounds, now_s: float) -> tuple[Trend, int]:
    """The trend as it is now, and how many workers there should be."""
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
    times = min(2.0, clear_s / bounds.clear_s)
    target = min(bounds.workers_max, max(workers + 1, math.ceil(workers * times)))
    return Trend(high_since_s=now_s, down_after_s=_patience_s(trend, now_s)), target


def _patience_s(trend: Trend, now_s: float) -> float:
    """How long the next step down must wait, now that workers come."""
    if trend.went_down_s is None:
        return trend.down_after_s
    taken_back = now_s - trend.went_down_s < TAKEN_BACK_S
    return min(DOWN_AFTER_S_MAX, trend.down_after_s * 2) if taken_back else DOWN_AFTER_S


def _low(trend: Trend, workers: int, bounds: Bounds, now_s: float) -> tuple[Trend, int]:
    since_s = now_s if trend.low_since_s is None else trend.low_since_s
    trend = replace(trend, high_since_s=None, low_since_s=since_s)
    if now_s - since_s < trend.down_after_s or workers <= bounds.workers_min:
        return trend, workers
    return replace(trend, low_since_s=now_s, went_down_s=now_s), workers - 1
