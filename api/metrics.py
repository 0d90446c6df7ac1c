"""Renders the state of the pool, what its workers have counted, and the service's own counters as Prometheus text.

No I/O. docs/metrics.md describes every family.
"""

import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any

from supervisor._version import __version__
from supervisor.shared_figures import PROCESS_BOUNDS_S, RECLAIM_BOUNDS_S, REDIS_BOUNDS_S, WAIT_BOUNDS_S

from .http_figures import HttpFigures
from .publish_figures import Produced

STATES = ("healthy", "starting", "paused", "degraded", "draining", "down")
Sample = tuple[Mapping[str, object], float | int | bool | None]
#: name, type, help, key in a group's entry
_OF_GROUP = (
    ("supervisor_stream_lag_messages", "Entries not yet delivered to the group.", "lag"),
    ("supervisor_stream_lag_is_lower_bound", "1: the lag is a lower bound.", "lag_at_least"),
    ("supervisor_stream_pending_messages", "Messages delivered and not settled.", "pending"),
    ("supervisor_stream_replaying_messages", "Replayed messages that are not settled.", "replaying"),
    ("supervisor_stream_retrying_messages", "Failed messages that wait for a retry.", "retrying"),
    ("supervisor_stream_waiting_turn_messages", "Messages that wait for others of their key or group.", "waiting_turn"),
    ("supervisor_stream_waiting_rate_messages", "Messages that wait for the handler's rate.", "waiting_rate"),
    ("supervisor_stream_oldest_seconds", "Age of the oldest unsettled message.", "oldest_s"),
    ("supervisor_dead_messages", "Dead letters.", "dead"),
    (
        "supervisor_stream_trimmed_unread_messages_total",
        "Entries removed before the group read them.",
        "trimmed_unread",
    ),
)
#: name, help, key of a list in the status document
_OF_POOL = (
    ("supervisor_group_cut_off_workers", "Workers that can't read the group.", "cut_off"),
    ("supervisor_group_circuit_open_workers", "Workers whose handler fails for nearly everything.", "circuits"),
)
#: name, type, help, key in `outbox`
_OF_OUTBOX = (
    ("supervisor_outbox_rows", "gauge", "Rows of the outbox that wait for the relay.", "rows"),
    ("supervisor_outbox_oldest_seconds", "gauge", "Age of the oldest row.", "oldest_s"),
    ("supervisor_outbox_published_total", "counter", "Rows that the relay has published.", "published"),
)
#: name, help, key in an entry of `later`
_OF_LATER = (
    ("supervisor_later_messages", "Messages that are published later.", "waiting"),
    ("supervisor_later_overdue_seconds", "How long the first of them has been due.", "overdue_s"),
    ("supervisor_later_malformed_messages", "Malformed members of the set that were due.", "malformed"),
)
#: name, help, key in an entry of `schedules`: a time
_OF_SCHEDULE = (
    ("supervisor_schedule_last_tick_timestamp_seconds", "The last tick that was published.", "last"),
    ("supervisor_schedule_next_tick_timestamp_seconds", "The next tick.", "next"),
)
_OF_WORKER = (
    ("supervisor_worker_resident_memory_bytes", "gauge", "Resident memory.", "rss_bytes"),
    ("supervisor_worker_beat_age_seconds", "gauge", "Time since the last heartbeat.", "beat_age_s"),
    ("supervisor_worker_loop_lag_seconds", "gauge", "The longest delay of the event loop.", "loop_lag_s_max"),
    ("supervisor_worker_in_flight_messages", "gauge", "Messages in flight.", "in_flight"),
    ("supervisor_worker_reconnects_total", "counter", "Lost connections to Redis.", "reconnects"),
    ("supervisor_trimmed_messages_total", "counter", "Messages trimmed or deleted while pending.", "trimmed"),
)


#: The reasons of a restart: how the worker before had ended.
_REASONS = ("exit", "signal", "oom", "hung", "recycle")


def render(
    state: Mapping[str, Any], figures: Mapping[str, Any], http: HttpFigures, produced: Produced, tails: int
) -> str:
    """Return the text of /metrics. Unknown values are left out, never shown as 0."""
    redis, groups = state["redis"], state["groups"]
    workers = [{**worker, "loop_lag_s_max": _seconds(worker.get("loop_lag_ms_max"))} for worker in state["workers"]]
    build = {"version": __version__, "python": platform.python_version(), "redis": redis.get("version") or "unknown"}
    lines = [
        *_family("supervisor_build_info", "gauge", "The versions in use.", [(build, 1)]),
        *_family("supervisor_redis_up", "gauge", "1: Redis can be used.", [({}, _is_up(redis))]),
        *_family(
            "supervisor_state",
            "gauge",
            "1 for the present state.",
            [({"state": s}, s == state["state"]) for s in STATES],
        ),
        *_family("supervisor_uptime_seconds", "gauge", "Uptime of the pool.", [({}, state.get("uptime_s"))]),
        *_family(
            "supervisor_workers",
            "gauge",
            "Workers by state.",
            [({"state": name}, count) for name, count in sorted(Counter(w["state"] for w in workers).items())],
        ),
        *_of_publishes(produced, http.labels),
        *_of_handlers(figures.get("handlers", ())),
        *_of_redis(figures, produced, http.labels),
        *_of_slots(figures),
        *_of_http(http, tails),
    ]
    for name, kind, text, key in _OF_WORKER:
        lines += _family(name, kind, text, [({"slot": worker["slot"]}, worker.get(key)) for worker in workers])
    for name, text, key in _OF_GROUP:
        labels = [({"stream": group["stream"], "group": group["group"]}, group.get(key)) for group in groups]
        lines += _family(name, "counter" if name.endswith("_total") else "gauge", text, labels)
    for name, kind, text, key in _OF_OUTBOX:
        lines += _family(name, kind, text, [({}, state["outbox"][key])] if state.get("outbox") else [])
    for name, text, key in _OF_LATER:
        lines += _family(name, "gauge", text, [({"stream": one["stream"]}, one[key]) for one in state.get("later", ())])
    lines += _of_schedules(state.get("schedules", ()))
    for name, text, key in _OF_POOL:
        counts = {(one["stream"], one["group"]): one["workers"] for one in state.get(key, ())}
        pairs = [(group["stream"], group["group"]) for group in groups] if key in state else []
        of_groups = [({"stream": s, "group": g}, counts.get((s, g), 0)) for s, g in dict.fromkeys([*pairs, *counts])]
        lines += _family(name, "gauge", text, of_groups)
    return "\n".join([*lines, ""])


def _is_up(redis: Mapping[str, Any]) -> bool | None:
    """Return whether Redis can be used; None while that is not known yet."""
    if "error" in redis:
        return False
    return True if redis.get("version") is not None else None


def _of_publishes(produced: Produced, process: Mapping[str, object]) -> list[str]:
    counts = sorted(produced.messages.items())
    return _family(
        "supervisor_messages_produced_total",
        "counter",
        "Messages that the HTTP service has published, by outcome.",
        [({"stream": stream, "outcome": outcome, **process}, count) for (stream, outcome), count in counts],
    )


def _of_redis(figures: Mapping[str, Any], produced: Produced, process: Mapping[str, object]) -> list[str]:
    rows: list[tuple[Mapping[str, object], Sequence[int], float]] = []
    if settle := figures.get("settle"):
        rows.append(({"operation": "xack"}, settle["buckets"], settle["sum_s"]))
    rows.append(({"operation": "xadd", **process}, produced.buckets, produced.sum_s))
    text = "Duration of pipelines with acks (xack), and of publishes from the call to the answer of Redis (xadd)."
    return _histogram("supervisor_redis_operation_duration_seconds", text, REDIS_BOUNDS_S, rows)


def _of_schedules(schedules: Sequence[Mapping[str, Any]]) -> list[str]:
    each = [({"schedule": one["name"], "stream": one["stream"]}, one) for one in schedules]
    lines: list[str] = []
    for name, text, key in _OF_SCHEDULE:
        times = [(labels, datetime.fromisoformat(one[key]).timestamp() if one[key] else None) for labels, one in each]
        lines += _family(name, "gauge", text, times)
    paused = [(labels, one["paused_since"] is not None) for labels, one in each]
    return [*lines, *_family("supervisor_schedule_paused", "gauge", "1: no tick is published.", paused)]


def _of_handlers(handlers: Iterable[Mapping[str, Any]]) -> list[str]:
    each = [({name: one[name] for name in ("stream", "group", "handler")}, one) for one in handlers]
    return [
        *_family(
            "supervisor_messages_delivered_total",
            "counter",
            "Messages given to the handler; redelivered: retries, replays, and what was taken over.",
            [
                ({**labels, "redelivered": again}, one[key])
                for labels, one in each
                for again, key in (("false", "delivered"), ("true", "redelivered"))
            ],
        ),
        *_family(
            "supervisor_messages_settled_total",
            "counter",
            "Deliveries by outcome; lost_claim: done, but the ack came too late.",
            [({**labels, "outcome": name}, count) for labels, one in each for name, count in one["settled"].items()],
        ),
        *_histogram(
            "supervisor_process_duration_seconds",
            "Duration of calls of the handler; a batch is one call.",
            PROCESS_BOUNDS_S,
            [(labels, one["process_buckets"], one["process_s"]) for labels, one in each],
        ),
        *_histogram(
            "supervisor_message_wait_seconds",
            "Time from publishing to the first delivery.",
            WAIT_BOUNDS_S,
            [(labels, one["wait_buckets"], one["wait_s"]) for labels, one in each],
        ),
    ]


def _of_slots(figures: Mapping[str, Any]) -> list[str]:
    return [
        *_family(
            "supervisor_worker_restarts_total",
            "counter",
            "Starts after the first, by how the worker before had ended.",
            [
                ({"slot": one["slot"], "reason": reason}, one[reason])
                for one in figures.get("restarts", ())
                for reason in _REASONS
            ],
        ),
        *_family(
            "supervisor_reclaimed_total",
            "counter",
            "Messages that changed hands, by why their owner lost them.",
            [({"cause": cause}, count) for cause, count in figures.get("reclaimed", {}).items()],
        ),
        *_histogram(
            "supervisor_reclaim_delay_seconds",
            "Time from the end of a worker to the adoption of its messages.",
            RECLAIM_BOUNDS_S,
            [({}, one["buckets"], one["sum_s"]) for one in [figures.get("reclaim_delay")] if one],
        ),
    ]


def _of_http(http: HttpFigures, tails: int) -> list[str]:
    return [
        *_family(
            "supervisor_http_requests_total",
            "counter",
            "Answers of the HTTP service.",
            [
                ({"method": method, "route": route, "status": status, **http.labels}, count)
                for (method, route, status), count in sorted(http.requests.items())
            ],
        ),
        *_family(
            "supervisor_http_refusals_total",
            "counter",
            "Answers with a problem, by its kind.",
            [({"kind": kind, **http.labels}, count) for kind, count in sorted(http.refusals.items())],
        ),
        *_family(
            "supervisor_http_tails", "gauge", "Clients that follow a stream or the state now.", [(http.labels, tails)]
        ),
    ]


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> list[str]:
    known = [(labels, value) for labels, value in samples if value is not None]
    if not known:
        return []
    head = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    return head + [f"{name}{_labels(labels)} {float(value):.12g}" for labels, value in known]


def _histogram(
    name: str, text: str, bounds: Sequence[float], rows: Iterable[tuple[Mapping[str, object], Sequence[int], float]]
) -> list[str]:
    """Return a histogram of these (labels, counts of single buckets, sum)."""
    lines: list[str] = []
    for labels, counts, total in rows:
        sums = list(accumulate(counts))
        edges = [f"{bound:g}" for bound in bounds] + ["+Inf"]
        lines += [f"{name}_bucket{_labels({**labels, 'le': le})} {n}" for le, n in zip(edges, sums, strict=True)]
        lines += [f"{name}_sum{_labels(labels)} {total:.12g}", f"{name}_count{_labels(labels)} {sums[-1]}"]
    return [f"# HELP {name} {text}", f"# TYPE {name} histogram", *lines] if lines else []


def _labels(labels: Mapping[str, object]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(str(value))}"' for name, value in labels.items()) + "}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
