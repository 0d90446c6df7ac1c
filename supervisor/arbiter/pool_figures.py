"""The answer to `figures`: what all workers have counted, added up; for /metrics."""

from collections.abc import Iterable, Sequence
from typing import Any

from supervisor.handling.loader import HandlerSpec
from supervisor.shared_figures import PROCESS_BOUNDS_S, RECLAIM_BOUNDS_S, REDIS_BOUNDS_S, WAIT_BOUNDS_S, FigureField
from supervisor.shared_state import SharedState, SlotField, consumer_key

_OUTCOMES = {
    "done": FigureField.SETTLED_DONE,
    "retry": FigureField.SETTLED_RETRY,
    "dead": FigureField.SETTLED_DEAD,
    "lost_claim": FigureField.SETTLED_LOST_CLAIM,
}
_RESTARTS = {
    "exit": SlotField.RESTARTS_EXIT,
    "signal": SlotField.RESTARTS_SIGNAL,
    "oom": SlotField.RESTARTS_OOM,
    "hung": SlotField.RESTARTS_HUNG,
    "recycle": SlotField.RESTARTS_RECYCLE,
}


def document(shared: SharedState, specs: Iterable[HandlerSpec], slots: Iterable[int]) -> dict[str, Any]:
    """Return the figures of the handlers, of these slots, and of what was taken over."""
    slots = list(slots)
    keys = {consumer_key(spec.stream, spec.group): spec for spec in specs}
    rows = shared.figures(keys)
    empty = [0] * (FigureField.WAIT_BUCKETS + len(WAIT_BOUNDS_S) + 1)
    return {
        "handlers": [
            {"stream": spec.stream, "group": spec.group, "handler": spec.name, **_figures(rows.get(key, empty))}
            for key, spec in keys.items()
        ],
        "restarts": [
            {"slot": number, **{name: shared.slot(number).get(field) for name, field in _RESTARTS.items()}}
            for number in slots
        ],
        "reclaimed": {
            "child_exit": sum(row[FigureField.RECLAIMED_CHILD_EXIT] for row in rows.values()),
            "drain": sum(row[FigureField.RECLAIMED_DRAIN] for row in rows.values()),
            "host": shared.total(SlotField.RECLAIMED_HOST),
            "idle": shared.total(SlotField.RECLAIMED_IDLE),
        },
        "settle": _histogram(shared, slots, SlotField.SETTLE_US, REDIS_BOUNDS_S),
        "reclaim_delay": _histogram(shared, slots, SlotField.RECLAIM_DELAY_US, RECLAIM_BOUNDS_S),
    }


def _figures(row: Sequence[int]) -> dict[str, Any]:
    return {
        "delivered": row[FigureField.DELIVERED],
        "redelivered": row[FigureField.REDELIVERED],
        "settled": {name: row[field] for name, field in _OUTCOMES.items()},
        "process_s": row[FigureField.PROCESS_US] / 1e6,
        "process_buckets": _buckets(row, FigureField.PROCESS_BUCKETS, PROCESS_BOUNDS_S),
        "wait_s": row[FigureField.WAIT_MS] / 1e3,
        "wait_buckets": _buckets(row, FigureField.WAIT_BUCKETS, WAIT_BOUNDS_S),
    }


def _histogram(
    shared: SharedState, slots: Iterable[int], total: SlotField, bounds_s: Sequence[float]
) -> dict[str, Any]:
    """Return a histogram of the slots, added up."""
    rows = [shared.slot(slot).histogram(total, bounds_s) for slot in slots]
    sum_us, *buckets = map(sum, zip([0] * (len(bounds_s) + 2), *rows, strict=True))
    return {"sum_s": sum_us / 1e6, "buckets": buckets}


def _buckets(row: Sequence[int], first: int, bounds_s: Sequence[float]) -> list[int]:
    return list(row[first : first + len(bounds_s) + 1])
