"""The sections of the suite: each starts what it needs, measures, and returns tables, plots and goals.

A drain of one workload puts the pool beside the program in C and the redis-py loop, in turn on one backlog.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import growth, idle, latency, queues, recovery, server_share
from benchmarks.contestants import Backlog, Contestant, Turn, in_c, loop, pool
from benchmarks.goals import Goal
from benchmarks.measure import ratios, spread, take_turns
from benchmarks.servers import binaries
from benchmarks.tools import STREAM, Report, median, say, server_of
from benchmarks.workloads import WORKLOADS
from tests.support.servers import RedisServer

MISSING = "not available"
WORKERS = (1, 2, 4)


@dataclass
class Outcome:
    """What a section found."""

    reports: list[Report] = field(default_factory=list)
    #: File name -> what draws it there.
    plots: dict[str, Callable[[Path], None]] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)


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

    def limit(self, no_op: float = 0.0) -> float:
        """What arithmetic allows, but not more than the rate of the no-op where that is given; 0: no such limit."""
        limit = WORKLOADS[self.workload].limit * self.workers
        return min(limit, no_op or limit)

    def beside_c(self) -> list[float]:
        """Return the ratio of each turn to the C program's, or an empty list if the program was not built."""
        return ratios(self.pool, self.c) if self.c else []


def backlog_of(client: Any, running: RedisServer, scale: Scale, workload: str) -> Backlog:
    """Empty the server and write the workload's backlog."""
    client.flushdb()
    entries, fields = scale.entries(WORKLOADS[workload].entries), WORKLOADS[workload].fields
    return Backlog(client, STREAM, entries, fields, server_pid=running.pid)


def drain(running: RedisServer, scale: Scale, workload: str, *, tcp: bool = False) -> Drain:
    """One workload with one worker, in turn with the references."""
    say(f"  {WORKLOADS[workload].title}{', TCP' if tcp else ''}")
    url = running.tcp_url if tcp else running.url
    with running.sync() as client, contextlib.ExitStack() as stack:
        backlog = backlog_of(client, running, scale, workload)
        ours = stack.enter_context(pool(backlog, url, workload))
        # Where arithmetic sets the limit, it is not Redis.
        c = None if WORKLOADS[workload].limit else in_c(backlog, running, url)
        theirs = loop(backlog, url, workload)
        contestants: list[Contestant] = [ours, *([c] if c else []), theirs]
        found = take_turns(contestants, scale.turns)
        client.flushdb()
    return Drain(workload, found[ours.title], found[c.title] if c else [], found[theirs.title])


BESIDE = ("C", "ratio to C", "redis-py loop", "ratio to the loop")
DRAIN_COLUMNS = ("", "messages/s", "CPU µs", "Redis, CPU µs", *BESIDE, "of the limit")


def drain_cells(found: Drain) -> list[object]:
    """The cells of a row with DRAIN_COLUMNS between the title and the limit."""
    no_c = "" if found.limit() else MISSING
    return [
        found.rate,
        median([turn.cpu_us for turn in found.pool]),
        median([turn.server_us for turn in found.pool]),
        median([turn.rate for turn in found.c]) if found.c else no_c,
        spread(found.beside_c()) if found.c else no_c,
        median([turn.rate for turn in found.loop]),
        spread(ratios(found.pool, found.loop)),
    ]


def drain_row(title: str, found: Drain, no_op: float = 0.0) -> list[object]:
    """A row of a table with DRAIN_COLUMNS."""
    limit = found.limit(no_op)
    return [title, *drain_cells(found), f"{found.rate / limit:.2f} of {limit:,.0f}" if limit else ""]


@contextmanager
def started(report: Report, *, binary: Any = None, fsync: str = "none") -> Iterator[RedisServer]:
    """A server of ours, named in the report."""
    with server_of(binary, fsync) as running:
        report.measured_on(running)
        yield running


def one_worker(scale: Scale) -> Outcome:
    """Every workload with one worker over a unix socket, without persistence."""
    report = Report("One worker", DRAIN_COLUMNS)
    found: dict[str, Drain] = {}
    with started(report) as running:
        for name, workload in WORKLOADS.items():
            found[name] = drain(running, scale, name)
            report.row(*drain_row(workload.title, found[name], found["message"].rate))
    report.notes.append(
        "The limit is 1 s / 1 ms of CPU, or concurrency / 10 ms of await, or the rate of the no-op where that is lower."
    )
    limit = found["wait1000"].limit(found["message"].rate)
    return Outcome(
        [report],
        goals=[
            Goal("no-op, `Message`, beside the C program", 0.9, found["message"].beside_c()),
            Goal("no-op, `dict[str, str]`, beside the C program", 0.75, found["dict"].beside_c()),
            Goal("pydantic model, beside the C program", 0.5, found["model"].beside_c()),
            Goal(
                "10 ms of await, concurrency 1,000, beside its limit",
                0.9,
                [turn.rate / limit for turn in found["wait1000"].pool],
            ),
        ],
    )


def drain_with(running: RedisServer, scale: Scale, workload: str, counts: tuple[int, ...]) -> dict[int, Drain]:
    """One workload with each number of workers, all in turn; the loop has as many processes, the C program one."""
    say(f"  {WORKLOADS[workload].title}, {', '.join(map(str, counts))} workers")
    with running.sync() as client, contextlib.ExitStack() as stack:
        backlog, url = backlog_of(client, running, scale, workload), running.url
        ours = {n: stack.enter_context(pool(backlog, url, workload, workers=n, title=f"pool of {n}")) for n in counts}
        theirs = {n: loop(backlog, url, workload, processes=n, title=f"redis-py, {n}") for n in counts}
        c = in_c(backlog, running, url)
        contestants: list[Contestant] = [*ours.values(), *([c] if c else []), *theirs.values()]
        found = take_turns(contestants, scale.turns)
        client.flushdb()
    limit = found[c.title] if c else []
    return {n: Drain(workload, found[ours[n].title], limit, found[theirs[n].title], n) for n in counts}


def workers(scale: Scale) -> Outcome:
    """One, two and four workers; the loop has as many processes, the C program one."""
    report = Report("Workers", (*DRAIN_COLUMNS[:-1], "ratio to one worker"))
    with started(report) as running:
        found = {name: drain_with(running, scale, name, WORKERS) for name in ("message", "model")}
    with larger_share_of(report) as preferred:
        by_share = drain_with(preferred, scale, "model", WORKERS) if preferred else {}
    for drains, share in [*((drains, "") for drains in found.values()), (by_share, ", server preferred")]:
        for count, one in drains.items():
            beside = spread(ratios(one.pool, drains[1].pool)) if count > 1 else ""
            report.row(f"{WORKLOADS[one.workload].title}, {count} worker(s){share}", *drain_cells(one), beside)
    report.notes.append(
        f"Server preferred: it has {server_share.TIMES} times the CPU share of any other group of processes."
    )

    def draw(path: Path) -> None:
        from benchmarks import plots

        series = {
            f"{who}, {name}": {count: [turn.rate for turn in getattr(one, kind)] for count, one in drains.items()}
            for name, drains in found.items()
            for who, kind in (("pool", "pool"), ("redis-py", "loop"))
        }
        plots.throughput(path, series, [turn.rate for drains in found.values() for turn in drains[1].c])

    title = "pydantic model, two workers beside one"
    goals = [
        Goal(name, 1.0, ratios(drains[2].pool, drains[1].pool))
        for name, drains in ((title, found["model"]), (f"{title}, server preferred", by_share))
        if drains
    ]
    return Outcome([report], {"throughput.svg": draw}, goals)


@contextmanager
def larger_share_of(report: Report) -> Iterator[RedisServer | None]:
    """A server with a larger share of the CPU; None where this machine does not allow it."""
    with started(report) as running, server_share.larger_share(running.pid) as allowed:
        yield running if allowed else None


def settings(scale: Scale) -> Outcome:
    """Over TCP, with an append-only file, on other servers."""
    outcome = Outcome()
    for title, binary, fsync, tcp in (
        ("TCP", None, "none", True),
        ("append-only file, everysec", None, "everysec", False),
        *((name, flavour, "none", False) for name, flavour in list(binaries().items())[1:]),
    ):
        report = Report(title, DRAIN_COLUMNS)
        outcome.reports.append(report)
        try:
            with started(report, binary=binary, fsync=fsync) as running:
                for name in ("message",) if binary else ("message", "dict"):
                    report.row(*drain_row(f"{WORKLOADS[name].title}, {title}", drain(running, scale, name, tcp=tcp)))
        except Exception as error:
            traceback.print_exc()
            report.notes.append(f"{title} failed: `{type(error).__name__}`.")
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
    idle_loads = [load for load in loads if not load.share and not load.one_core]
    plotted = [idle_loads[-1], *(load for load in loads if load.share)]
    for who in ("pool", "blocking"):
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            samples = [getattr(load, who) for load in plotted]
            if samples[0].turns:
                title = "pool" if who == "pool" else "C, blocking read"
                lines[f"{title}, {name}"] = [median(one.each_us(share)) for one in samples]

    def draw(path: Path) -> None:
        from benchmarks import plots

        plots.latency(path, [load.share for load in plotted], lines)

    goals = [
        Goal(
            f"`XADD` to the handler, idle pool ({load.rate:g} messages a second), {name}, beside the C read",
            bound,
            load.ratios(percentile),
            at_most=True,
        )
        for load in idle_loads
        for name, percentile, bound in (("median", 0.5, 2.0), ("p99", 0.99, 4.0))
    ]
    return Outcome([report], {"latency.svg": draw}, goals)


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

    grown = [turn.private[-1] - turn.private[0] for turn in turns]
    goal = Goal("private memory of a worker from 10,000 messages to 1,000,000, MiB", 1.0, grown, at_most=True)
    return Outcome([report], {"memory.svg": draw}, [goal])


def idling(scale: Scale) -> Outcome:
    """What a pool of eight workers costs that has nothing to do, beside eight redis-py loops that block."""
    report = Report("Idle", idle.COLUMNS)
    with started(report) as running, server_of() as beside:
        ours, theirs = idle.measure(running, beside, 8, scale.turns, max(1.0, 6 * scale.size))
    for row in idle.rows(ours, theirs, 8):
        report.row(*row)
    report.notes.append(idle.NOTE)
    return Outcome([report])


def others(scale: Scale) -> Outcome:
    """Other queues on Redis."""
    report = Report("Queues", queues.COLUMNS)
    found: dict[str, queues.Found] = {}
    for name in queues.QUEUES:
        with server_of() as running:
            measured = queues.row(name, report, running, scale.entries(100_000), scale.turns)
        if measured is not None:
            found[name] = measured
    report.notes.append(f"All with {queues.WORKERS} worker processes over TCP and a task that does nothing.")
    rates = {queues.QUEUES[name].title: median([turn.rate for turn in one.theirs]) for name, one in found.items()}
    ours = [turn.rate for one in found.values() for turn in one.ours]

    def draw(path: Path) -> None:
        from benchmarks import plots

        plots.queues(path, {"pool, one message a call": median(ours)} | rates)

    batch = found.pop(queues.BATCH, None)
    fastest = max(found.values(), key=lambda one: median([turn.rate for turn in one.theirs]), default=None)
    goals = [
        Goal(f"beside {queues.QUEUES[queues.BATCH].title}", 4.0, batch.ratios if batch else []),
        Goal("beside the fastest queue that handles one message at a time", 50.0, fastest.ratios if fastest else []),
    ]
    return Outcome([report], {"queues.svg": draw} if ours else {}, goals)


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
