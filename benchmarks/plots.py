"""The plots of RESULTS.md, as SVG: the same input gives the same file."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.rcParams.update(
    {
        "svg.hashsalt": "benchmarks",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
)
#: The pool, and what it is compared with.
OURS, THEIRS, LIMIT = "#0b6e99", "#d9730d", "#6b6b6b"


def throughput(path: Path, series: Mapping[str, Mapping[int, Sequence[float]]], limit: Sequence[float]) -> None:
    """Messages a second against workers: name -> workers -> turns; `limit` are the C program's turns."""
    figure, axes = _figure("workers", "messages a second")
    for name, points in series.items():
        workers = sorted(points)
        middle = [statistics.median(points[n]) for n in workers]
        spread = [
            [m - min(points[n]) for m, n in zip(middle, workers, strict=True)],
            [max(points[n]) - m for m, n in zip(middle, workers, strict=True)],
        ]
        colour, line = (OURS if name.startswith("pool") else THEIRS), ("--" if "model" in name else "-")
        axes.errorbar(workers, middle, spread, label=name, color=colour, linestyle=line, marker="o", capsize=3)
    if limit:
        axes.axhline(statistics.median(limit), color=LIMIT, linestyle=":", label="C, reads and acks only")
    axes.set_xticks(sorted({n for points in series.values() for n in points}))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _save(figure, axes, path)


def latency(path: Path, shares: Sequence[float], lines: Mapping[str, Sequence[float]]) -> None:
    """Microseconds against the share of the capacity that is offered."""
    figure, axes = _figure("offered load, % of the pool's capacity", "XADD to handler, µs")
    for name, values in lines.items():
        colour, line = (OURS if name.startswith("pool") else LIMIT), ("--" if "p99" in name else "-")
        axes.plot([share * 100 for share in shares], values, label=name, color=colour, linestyle=line, marker="o")
    axes.set_yscale("log")
    _save(figure, axes, path)


def recovery(path: Path, turns: Mapping[str, Sequence[float]]) -> None:
    """Milliseconds of each turn, a row for each name."""
    figure, axes = _figure("ms from kill -9 until the messages ran again", "", height=2.4)
    for row, (name, values) in enumerate(turns.items()):
        colour = OURS if name.startswith("pool") else LIMIT
        axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.5)
        axes.plot([statistics.median(values)], [row], "|", color=colour, markersize=22, markeredgewidth=2)
    axes.set_yticks(range(len(turns)), list(turns))
    axes.set_ylim(-0.6, len(turns) - 0.4)
    axes.set_xlim(left=0)
    _save(figure, axes, path, legend=False)


def memory(path: Path, step: int, turns: Sequence[Sequence[float]]) -> None:
    """Private MiB against messages handled, a line for each turn."""
    figure, axes = _figure("messages handled", "private memory of the worker, MiB")
    for values in turns:
        axes.plot([step * (n + 1) for n in range(len(values))], values, color=OURS, alpha=0.7)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _save(figure, axes, path, legend=False)


def queues(path: Path, rates: Mapping[str, float]) -> None:
    """Messages a second of each, the fastest on top, on a logarithmic axis."""
    figure, axes = _figure("messages a second", "", height=0.8 + 0.35 * len(rates))
    names = sorted(rates, key=lambda name: rates[name])
    colours = [OURS if name.startswith("pool") else THEIRS for name in names]
    axes.barh(names, [rates[name] for name in names], color=colours)
    for row, name in enumerate(names):
        axes.text(rates[name] * 1.1, row, f"{rates[name]:,.0f}", va="center", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlim(left=10, right=max(rates.values()) * 6)
    axes.grid(visible=False, axis="y")
    _save(figure, axes, path, legend=False)


def _figure(x: str, y: str, *, height: float = 4.0) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _save(figure: Figure, axes: Any, path: Path, *, legend: bool = True) -> None:
    if legend:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
