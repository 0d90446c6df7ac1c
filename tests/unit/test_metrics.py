"""What /metrics prints is what Prometheus reads and its linter accepts, and the alert rules ask for what there is.

The rules are those of `promtool check metrics`.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from api.http_figures import HttpFigures
from api.metrics import _of_http, _of_publishes, _of_redis, render
from api.publish_figures import OTHER, STREAMS_MAX, Produced
from supervisor.arbiter.pool_figures import document
from supervisor.shared_figures import RECLAIM_BOUNDS_S, REDIS_BOUNDS_S, FigureField
from supervisor.shared_state import SharedState, SlotField

ALERTS = Path(__file__).parents[2] / "docs" / "alerts.yaml"
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\})? (\S+)')
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\["\\n])*)"')
#: Words that promtool does not want in a name: types, and units other than the base units.
TYPES = {"gauge", "counter", "histogram", "summary"}
UNITS = {"ms", "milliseconds", "microseconds", "us", "minutes", "hours", "days", "s", "secs", "sec", "kb", "mb"}
UNITS |= {"kilobytes", "megabytes", "percent", "percentage", "bits"}
_TICK = "2030-01-31T03:00:00+01:00"
ODD_STREAM = 'events:"odd"\\\nname'


class Spec:
    stream, group, name = ODD_STREAM, "mail", "handlers.mail.send"


def figures() -> dict[str, Any]:
    shared = SharedState()
    slot = shared.slot(0)
    slot.set(SlotField.SPAWN_NS, 1)
    slot.add(SlotField.RESTARTS_HUNG, 2)
    slot.add(SlotField.RECLAIMED_IDLE, 3)
    slot.observe(SlotField.SETTLE_US, REDIS_BOUNDS_S, 0.002)
    slot.observe(SlotField.RECLAIM_DELAY_US, RECLAIM_BOUNDS_S, 0.03, 5)
    slot.observe(SlotField.RECLAIM_DELAY_US, RECLAIM_BOUNDS_S, 400.0)
    counted = slot.figures(Spec.stream, Spec.group)
    assert counted is not None
    counted.ran_quickly(7, 0.01)
    for process_s in (0.3, 11.0):
        counted.ran(process_s)
    counted.add(FigureField.SETTLED_DONE, 8)
    counted.add(FigureField.SETTLED_LOST_CLAIM)
    return document(shared, [Spec], [0])  # type: ignore[list-item]


def text(redis: dict[str, Any] | None = None) -> str:
    """/metrics of a pool with one of everything."""
    worker = dict.fromkeys(("rss_bytes", "beat_age_s", "loop_lag_ms_max", "in_flight", "reconnects", "trimmed"), 1)
    group = dict.fromkeys(("lag", "pending", "replaying", "retrying", "oldest_s", "dead", "trimmed_unread"), 1)
    names = {"stream": ODD_STREAM, "group": "mail"}
    state: dict[str, Any] = {
        "state": "healthy", "uptime_s": 1.5, "redis": {"version": "8.0"} if redis is None else redis,
        "workers": [{"slot": 0, "state": "READY", **worker}],
        "groups": [{**names, "lag_at_least": False, **group}],
        "cut_off": [{**names, "workers": 1}], "circuits": [],
        "schedules": [{"name": "n", "stream": "s", "last": _TICK, "next": _TICK, "paused_since": None}],
    }  # fmt: skip
    http = HttpFigures()
    http.answered({"method": "GET"}, 404)
    http.refused("not-found")
    produced = Produced()
    produced.count(ODD_STREAM, "stored", 3)
    produced.took(0.02)
    return render(state, figures(), http, produced, 2)


def families() -> tuple[dict[str, str], dict[str, list[tuple[str, dict[str, str], float]]]]:
    """(Name -> type, name -> its samples), read as Prometheus reads it."""
    kinds: dict[str, str] = {}
    samples: dict[str, list[tuple[str, dict[str, str], float]]] = defaultdict(list)
    helped = ""
    for line in text().splitlines():
        if line.startswith("# HELP "):
            helped, words = line.split(" ", 3)[2:]
            assert words.strip() and helped not in kinds, line
        elif line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert name == helped, "each type follows its help"
            kinds[name] = kind
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            assert found[1].removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") == helped or (
                kinds[helped] != "histogram" and found[1] == helped
            ), f"{line}: not of the family above it"
            samples[helped].append((found[1], dict(LABEL.findall(found[2] or "")), float(found[3])))
    return kinds, samples


def test_names_follow_the_rules_of_promtool() -> None:
    kinds, samples = families()
    assert len(kinds) > 25 and set(kinds) == set(samples)
    for name, kind in kinds.items():
        words = name.split("_")
        assert re.fullmatch(r"supervisor_[a-z_]+", name)
        assert not TYPES & set(words), f"{name}: a type in the name"
        assert not UNITS & set(words), f"{name}: not a base unit"
        assert (words[-1] == "total") == (kind == "counter"), name
        assert words[-1] not in ("bucket", "sum", "count", "info") or name == "supervisor_build_info"
        for series, labels, _ in samples[name]:
            assert ("le" in labels) == series.endswith("_bucket"), series
            assert all(re.fullmatch(r"[a-z_]+", label) and not label.startswith("__") for label in labels)
            assert not {"pid", "id"} & set(labels), "there would be no end of series"


def test_each_of_many_http_processes_has_series_of_its_own() -> None:
    http = HttpFigures("2")
    http.answered({"method": "GET"}, 404)
    http.refused("not-found")
    lines = [line for line in _of_http(http, 3) if not line.startswith("#")]
    assert lines == [
        'supervisor_http_requests_total{method="GET",route="none",status="404",process="2"} 1',
        'supervisor_http_refusals_total{kind="not-found",process="2"} 1',
        'supervisor_http_tails{process="2"} 3',
    ]
    produced = Produced()
    produced.count("events", "stored", 4)
    [line] = [line for line in _of_publishes(produced, http.labels) if not line.startswith("#")]
    assert line == 'supervisor_messages_produced_total{stream="events",outcome="stored",process="2"} 4'
    assert any('{operation="xadd",process="2",le="+Inf"} 0' in line for line in _of_redis({}, produced, http.labels))


def test_streams_that_clients_name_make_no_series_without_end() -> None:
    produced = Produced()
    for number in range(2 * STREAMS_MAX):
        produced.count(f"stream {number}", "stored", 1)
    assert len(produced.messages) == STREAMS_MAX + 1
    assert produced.messages[OTHER, "stored"] == STREAMS_MAX


def test_streams_that_have_handlers_always_have_series() -> None:
    produced = Produced()
    for number in range(2 * STREAMS_MAX):
        produced.count(f"stream {number}", "stored", 1)
    produced.handled.add("events")
    produced.count("events", "stored", 1)
    produced.count("more", "stored", 1)
    assert produced.messages["events", "stored"] == 1
    assert produced.messages[OTHER, "stored"] == STREAMS_MAX + 1


def test_no_series_occurs_twice() -> None:
    _, samples = families()
    series = [(name, *sorted(labels.items())) for rows in samples.values() for name, labels, _ in rows]
    assert len(series) == len(set(series))


def test_histograms_are_cumulative_and_whole() -> None:
    kinds, samples = families()
    histograms = [name for name, kind in kinds.items() if kind == "histogram"]
    assert set(histograms) == {
        "supervisor_process_duration_seconds", "supervisor_message_wait_seconds",
        "supervisor_redis_operation_duration_seconds", "supervisor_reclaim_delay_seconds",
    }  # fmt: skip
    for name in histograms:
        rows: dict[str | None, list[tuple[str, dict[str, str], float]]] = defaultdict(list)
        for sample in samples[name]:
            rows[sample[1].get("operation")].append(sample)
        for row in rows.values():
            buckets = [(labels["le"], value) for series, labels, value in row if series == f"{name}_bucket"]
            others = {series: value for series, _, value in row if not series.endswith("_bucket")}
            counts, bounds = [count for _, count in buckets], [float(le) for le, _ in buckets]
            assert (counts, bounds) == (sorted(counts), sorted(bounds))
            assert buckets[-1] == ("+Inf", others[f"{name}_count"])
    assert of_bounds(samples["supervisor_process_duration_seconds"], "0.005", "0.25", "0.5", "+Inf") == [7, 7, 8, 9]
    assert of_bounds(samples["supervisor_reclaim_delay_seconds"], "0.025", "0.05", "300", "+Inf") == [0, 5, 5, 6]
    redis = samples["supervisor_redis_operation_duration_seconds"]
    for operation, expected in (("xack", [0, 1, 1]), ("xadd", [0, 0, 1])):
        row = [sample for sample in redis if sample[1]["operation"] == operation]
        assert of_bounds(row, "0.001", "0.0025", "0.025") == expected


def of_bounds(samples: list[tuple[str, dict[str, str], float]], *bounds: str) -> list[float]:
    found = {labels["le"]: value for _, labels, value in samples if "le" in labels}
    return [found[bound] for bound in bounds]


def test_names_of_streams_are_escaped() -> None:
    _, samples = families()
    [(_, labels, value)] = [row for row in samples["supervisor_messages_settled_total"] if row[1]["outcome"] == "done"]
    assert labels["stream"] == ODD_STREAM.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    assert (labels["group"], labels["handler"], value) == ("mail", "handlers.mail.send", 8)


def test_what_is_not_known_is_left_out() -> None:
    assert "supervisor_redis_up 1" in text()
    assert "supervisor_redis_up 0" in text({"version": None, "error": "no answer in time"})
    assert "supervisor_redis_up" not in text({"version": None})


def test_the_alerts_ask_for_metrics_that_exist() -> None:
    kinds, samples = families()
    series = {name for rows in samples.values() for name, _, _ in rows} | set(kinds)
    used = re.findall(
        r"supervisor_[a-z_]+", " ".join(line for line in ALERTS.read_text().splitlines() if "#" not in line)
    )
    assert len(set(used)) > 10 and set(used) <= series
