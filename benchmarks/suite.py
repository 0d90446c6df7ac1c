"""The whole suite in under 15 minutes: `make bench`. Writes RESULTS.md and its plots.

    python -m benchmarks.suite                           all of it
    python -m benchmarks.suite --only latency --quick    one section in small, printed only

Each section starts the servers and pools that it needs. A section that fails is reported as failed; the
others still run.
"""

import argparse
import contextlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import growth, idle, latency, queues, recovery
from benchmarks.contestants import Backlog, Contestant, Turn, in_c, loop, pool
from benchmarks.measure import ratios, spread, take_turns
from benchmarks.reference import libhiredis, program
from benchmarks.servers import binaries
from benchmarks.tools import STREAM, Report, end_on_sigterm, median, say, server_of
from benchmarks.workloads import WORKLOADS
from supervisor import __version__
from tests.support.servers import RedisServer

HERE = Path(__file__).parent
RESULTS, PLOTS = HERE / "RESULTS.md", HERE / "results"
MISSING = "not available"
#: Of the sizes, with --quick.
QUICK = 0.1


@dataclass
class Outcome:
    """What a section found."""

    reports: list[Report] = field(default_factory=list)
    #: File name -> what draws it there.
    plots: dict[str, Callable[[Path], None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    turns: int
    size: float

    def entries(self, full: int) -> int:
        """A backlog of this scale."""
        return max(500, int(full * self.size))


@dataclass
class Drain:
    """Turns of the pool and of what stands beside it, for one workload."""

    workload: str
    pool: list[Turn]
    c: list[Turn]
    loop: list[Turn]
    workers: int = 1

    @property
    def rate(self) -> float:
        """The pool's, the median."""
        return median([turn.rate for turn in self.pool])


def drain(running: RedisServer, scale: Scale, workload: str, *, workers: int = 1, tcp: bool = False) -> Drain:
    """One workload with that many workers, in turn with the references."""
    say(f"  {WORKLOADS[workload].title}, {workers} worker(s){', TCP' if tcp else ''}")
    url = running.tcp_url if tcp else running.url
    with running.sync() as client, contextlib.ExitStack() as stack:
        client.flushdb()
        backlog = Backlog(client, STREAM, scale.entries(WORKLOADS[workload].entries), WORKLOADS[workload].fields)
        ours = stack.enter_context(pool(backlog, url, workload, workers=workers))
        # Where arithmetic sets the limit, it is not Redis.
        c = None if WORKLOADS[workload].limit else in_c(backlog, running, url)
        theirs = loop(backlog, url, workload, processes=workers)
        contestants: list[Contestant] = [ours, *([c] if c else []), theirs]
        found = take_turns(contestants, scale.turns)
        client.flushdb()
    return Drain(workload, found[ours.title], found[c.title] if c else [], found[theirs.title], workers)


DRAIN_COLUMNS = ("", "messages/s", "CPU µs", "C", "ratio to C", "redis-py loop", "ratio to the loop", "of the limit")


def drain_row(title: str, found: Drain, no_op: float = 0.0) -> list[object]:
    """A row of a table with DRAIN_COLUMNS. The limit is what arithmetic allows, but not more than the no-op rate."""
    limit = WORKLOADS[found.workload].limit * found.workers
    no_c = "" if limit else MISSING
    limit = min(limit, no_op or limit)
    return [
        title,
        found.rate,
        median([turn.cpu_us for turn in found.pool]),
        median([turn.rate for turn in found.c]) if found.c else no_c,
        spread(ratios(found.pool, found.c)) if found.c else no_c,
        median([turn.rate for turn in found.loop]),
        spread(ratios(found.pool, found.loop)),
        f"{found.rate / limit:.2f} of {limit:,.0f}" if limit else "",
    ]


@contextmanager
def started(report: Report, *, binary: Any = None, fsync: str = "none") -> Iterator[RedisServer]:
    """A server of ours, named in the report."""
    with server_of(binary, fsync) as running:
        report.measured_on(running)
        yield running


# The sections


def one_worker(scale: Scale) -> Outcome:
    """Every workload with one worker over a unix socket, without persistence."""
    report = Report("One worker", DRAIN_COLUMNS)
    with started(report) as running:
        no_op = 0.0
        for name, workload in WORKLOADS.items():
            found = drain(running, scale, name)
            no_op = no_op or found.rate
            report.row(*drain_row(workload.title, found, no_op))
    report.notes.append(
        "The limit is 1 s / 1 ms of CPU, or concurrency / 10 ms of await, or the rate of the no-op where that is lower."
    )
    return Outcome([report])


def workers(scale: Scale) -> Outcome:
    """One, two and four workers; the loop has as many processes, the C program one."""
    report = Report("Workers", DRAIN_COLUMNS)
    series: dict[str, dict[int, list[float]]] = {}
    limit: list[float] = []
    with started(report) as running:
        for name in ("message", "model"):
            for count in (1, 2, 4):
                found = drain(running, scale, name, workers=count)
                report.row(*drain_row(f"{WORKLOADS[name].title}, {count} worker(s)", found))
                series.setdefault(f"pool, {name}", {})[count] = [turn.rate for turn in found.pool]
                series.setdefault(f"redis-py, {name}", {})[count] = [turn.rate for turn in found.loop]
                limit += [turn.rate for turn in found.c]

    def draw(path: Path) -> None:
        from benchmarks import plots

        plots.throughput(path, series, limit)

    return Outcome([report], {"throughput.svg": draw})


def settings(scale: Scale) -> Outcome:
    """Over TCP, with an append-only file, on other servers."""
    outcome = Outcome()
    for title, binary, fsync, tcp in (
        ("TCP", None, "none", True),
        ("append-only file, everysec", None, "everysec", False),
        *((name, flavour, "none", False) for name, flavour in list(binaries().items())[1:]),
    ):
        report = Report(title, DRAIN_COLUMNS)
        with started(report, binary=binary, fsync=fsync) as running:
            for name in ("message",) if binary else ("message", "dict"):
                report.row(*drain_row(f"{WORKLOADS[name].title}, {title}", drain(running, scale, name, tcp=tcp)))
        outcome.reports.append(report)
    return outcome


def latencies(scale: Scale) -> Outcome:
    """Latency under load."""
    report = Report("Latency", latency.COLUMNS)
    with started(report) as running, running.sync() as client:
        loads = latency.measure_loads(running, client, running.url, scale.turns, max(0.3, 1.2 * scale.size))
    for row in latency.rows(loads):
        report.row(*row)
    report.notes.append("p50 and p99: medians of the turns; p99.9: of all turns together. Ratios: to the C program.")
    lines: dict[str, list[float]] = {}
    for who in ("pool", "blocking"):
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            samples = [getattr(load, who) for load in loads]
            if samples[0].turns:
                title = "pool" if who == "pool" else "C, blocking read"
                lines[f"{title}, {name}"] = [median(one.each_us(share)) for one in samples]

    def draw(path: Path) -> None:
        from benchmarks import plots

        plots.latency(path, [load.share for load in loads], lines)

    return Outcome([report], {"latency.svg": draw})


def recoveries(scale: Scale) -> Outcome:
    """From kill -9 of a worker until its messages run again."""
    report = Report("Recovery", recovery.COLUMNS)
    with started(report) as running:
        ours, theirs = recovery.measure(running, 4, max(scale.turns, int(12 * scale.size)), 16)
    for row in recovery.rows(ours, theirs):
        report.row(*row)
    report.notes.append("A bare fork is a parent that forks again what dies, and whose child reads its pending list.")
    turns = {
        "a bare fork": [one.all_ms for one in theirs],
        "pool, all": [one.all_ms for one in ours],
        "pool, first": [one.first_ms for one in ours],
    }

    def draw(path: Path) -> None:
        from benchmarks import plots

        plots.recovery(path, turns)

    return Outcome([report], {"recovery.svg": draw})


def memory(scale: Scale) -> Outcome:
    """A worker's memory over a million messages."""
    report = Report("Memory", growth.COLUMNS)
    with started(report) as running:
        turns = growth.measure(running, max(50_000, int(1_000_000 * scale.size)), scale.turns)
    for row in growth.rows(turns):
        report.row(*row)

    def draw(path: Path) -> None:
        from benchmarks import plots

        plots.memory(path, growth.STEP, [turn.private for turn in turns])

    return Outcome([report], {"memory.svg": draw})


def idling(scale: Scale) -> Outcome:
    """What a pool of eight workers costs that has nothing to do."""
    report = Report("Idle", idle.COLUMNS)
    with started(report) as running:
        rounds = [idle.one_round(running, 8, max(2.0, 8 * scale.size)) for _ in range(2)]
    for row in idle.rows(rounds, 8):
        report.row(*row)
    return Outcome([report])


def others(scale: Scale) -> Outcome:
    """Other queues on Redis."""
    report = Report("Queues", queues.COLUMNS)
    rates: dict[str, float] = {}
    ours: list[float] = []
    for name in queues.QUEUES:
        with server_of() as running:
            found = queues.row(name, report, running, scale.entries(100_000), scale.turns)
        if found is not None:
            rates[queues.QUEUES[name].title] = median([turn.rate for turn in found.theirs])
            ours += [turn.rate for turn in found.ours]
    report.notes.append(f"All with {queues.WORKERS} worker processes over TCP and a task that does nothing.")

    def draw(path: Path) -> None:
        from benchmarks import plots

        plots.queues(path, {"pool, one message a call": median(ours)} | rates)

    return Outcome([report], {"queues.svg": draw} if ours else {})


SECTIONS: dict[str, tuple[str, Callable[[Scale], Outcome]]] = {
    "worker": ("Throughput of one worker", one_worker),
    "workers": ("Throughput against workers", workers),
    "settings": ("Transport, durability, servers", settings),
    "latency": ("Latency against load", latencies),
    "recovery": ("Recovery", recoveries),
    "memory": ("Memory", memory),
    "idle": ("An idle pool", idling),
    "queues": ("Other queues on Redis", others),
}
HEAD = """\
# Results

Written by `make bench`; what each figure means is in [README.md](README.md), what was tried in [NOTES.md](NOTES.md).

{surroundings}

Every ratio is of turns taken alternately in one run on one server: the **median**, with the lowest and the highest
in brackets. Compare ratios, not rates. C is a program on libhiredis that only reads and acks, with two batches in
flight; the redis-py loop is one pipeline a batch that does the same work as the handler.
"""


def surroundings(turns: int) -> str:
    """What all of it was measured on."""
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "turns": str(turns),
        "machine": f"{os.cpu_count()} cores, {_processor()}, {platform.system()} {platform.machine()}",
        "versions": f"supervisor {__version__}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("redis", "hiredis", "uvloop", "pydantic")),
        "C": f"libhiredis {libhiredis()}" if program("drain") else MISSING,
        "load at the start": f"{os.getloadavg()[0]:.2f}",
    }
    return "\n".join(f"- {name}: {value}" for name, value in found.items())


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def section_text(title: str, about: str, outcome: Outcome) -> str:
    """A section of RESULTS.md."""
    parts = [f"## {title}", about]
    parts += [f"![{title}](results/{name})" for name in outcome.plots]
    for report in outcome.reports:
        if report.where:
            parts.append(f"Measured on {report.where['server']}, durability {report.where['durability']}.")
        parts.append(report.markdown())
    return "\n\n".join(part for part in parts if part)


def run(names: list[str], scale: Scale, *, keep: bool) -> tuple[list[str], list[str]]:
    """The texts of all sections, and which of them failed."""
    begun = time.monotonic()
    texts, failed = [], []
    for number, name in enumerate(names, 1):
        title, measure = SECTIONS[name]
        say(f"[{number}/{len(names)}, {(time.monotonic() - begun) / 60:.1f} min] {title}")
        try:
            outcome = measure(scale)
            if keep:
                for file, draw in outcome.plots.items():
                    draw(PLOTS / file)
        except Exception as error:
            traceback.print_exc()
            failed.append(name)
            texts.append(f"## {title}\n\nThis section failed: `{type(error).__name__}`.")
            continue
        for report in outcome.reports:
            report.show(as_json=False)
        texts.append(section_text(title, (measure.__doc__ or "").strip(), outcome))
    say(f"{(time.monotonic() - begun) / 60:.1f} minutes")
    return texts, failed


def main() -> int:
    """0 when every section was measured."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="of each figure (default: 5)")
    parser.add_argument("--only", action="append", choices=[*SECTIONS], help="only these sections, printed, not kept")
    parser.add_argument("--quick", action="store_true", help="small backlogs, to try it out; not kept")
    options = parser.parse_args()
    keep = not options.only and not options.quick
    scale = Scale(options.turns, QUICK if options.quick else 1.0)
    about = surroundings(options.turns)
    texts, failed = run(options.only or [*SECTIONS], scale, keep=keep)
    if keep:
        RESULTS.write_text("\n\n".join([HEAD.format(surroundings=about).rstrip(), *texts]) + "\n")
        say(f"{RESULTS.relative_to(HERE.parent)} is written")
    if failed:
        say(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
