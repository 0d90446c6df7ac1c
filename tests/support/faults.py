"""What every fault test needs: the footprint of an arbiter, time bounds that are shown, a look at shared memory."""

import contextlib
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor.shared_state import SharedState, SlotField
from tests.support.pool import Pool
from tests.support.standins import Standins
from tests.support.waiting import eventually

AnyPool = Pool | Standins
#: How soon after a fault the arbiter must have given everything back.
FLAT_LIMIT_S = 20.0
NS = 1_000_000_000


# The footprint


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    pid: int
    fds: Counter[str]
    threads: int

    def grown(self, now: "Footprint") -> str:
        """What `now` has more of; empty when nothing."""
        more = now.fds - self.fds
        threads = f"{now.threads} threads instead of {self.threads}" if now.threads > self.threads else ""
        return ", ".join([*(f"{count} more {kind}" for kind, count in more.items()), *([threads] if threads else [])])


def footprint(pid: int) -> Footprint:
    """Descriptors by kind, and threads."""
    kinds: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            kinds[str(link.readlink()).split(":[")[0]] += 1
    return Footprint(pid, kinds, psutil.Process(pid).num_threads())


def zombies(pid: int) -> list[int]:
    """The children that were not waited for."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:
                found.append(child.pid)
    return found


class Watch:
    """All pools of one case: what their arbiters held when they were READY, and whether they hold more in the end."""

    def __init__(self) -> None:
        self._pools: list[AnyPool] = []
        self._before: dict[int, Footprint] = {}

    def add(self, pool: AnyPool) -> None:
        """A pool of this case."""
        self._pools.append(pool)

    def measure(self, pool: AnyPool) -> None:
        """This is how it is before the fault. Twice the same: no client that was just answered is counted."""
        last = footprint(pool.pid)

        def settled() -> bool:
            nonlocal last
            before, last = last, footprint(pool.pid)
            return before == last

        eventually(settled, interval_s=0.03, what="the arbiter's descriptors do not change")
        self._before[pool.pid] = last

    def assert_flat(self) -> None:
        """Fails when a running arbiter has a descriptor or thread more than before, or a zombie."""
        for pool in self._pools:
            if pool.process is None or pool.process.poll() is not None:
                continue
            pid = pool.pid
            before = self._before.get(pid)
            if before is not None:
                eventually(
                    lambda before=before, pid=pid: not before.grown(footprint(pid)),
                    FLAT_LIMIT_S,
                    what=f"as flat as before the fault; {before.grown(footprint(pid))}",
                )
            eventually(lambda pid=pid: not zombies(pid), FLAT_LIMIT_S, what=f"no zombie is left; {zombies(pid)}")
            assert footprint(pid).threads == 1, "the arbiter has no thread"

    def assert_ended(self) -> None:
        """Fails when one of the pools left a process or a socket file."""
        for pool in self._pools:
            assert not pool.processes(), pool.processes()
            left = [path for path in (pool.paths.control, pool.paths.redis_socket) if path.exists()]
            assert not left, f"sockets were left: {left}"


# Bounds

#: How long the start of a pool takes on a machine of two cores that has nothing else to do.
START_MS = 600.0
#: A time may exceed its bound by this factor, and is always allowed this many starts: the load of the machine varies.
#: The benchmarks measure how fast the pool is.
SLACK, STARTS_MIN = 5.0, 4.0
#: The units of times.
MS_OF = {"ms": 1.0, "s": 1000.0}


#: The events by which the processes of a pool say that Redis is away.
OUTAGE = ("can't read", "can't settle", "can't renew the lease", "can't do housekeeping")


def outage_lines(pool: AnyPool) -> list[dict[str, Any]]:
    """The lines by which the processes of a pool say, one of them at a time, that Redis is away."""
    return [line for name in OUTAGE for line in pool.events(name)]


def scaled(bound_ms: float, start_ms: float) -> float:
    """The bound for this machine at this moment, by the time that the start of a pool has just taken on it."""
    return start_ms * max(STARTS_MIN, SLACK * bound_ms / START_MS)


@dataclass(frozen=True)
class Row:
    """One thing that was measured."""

    case: str
    what: str
    values: Sequence[float]
    bound: float
    unit: str

    def cells(self) -> tuple[str, ...]:
        """For the table: case, what, how often, median, worst, bound."""
        median, worst = statistics.median(self.values), max(self.values)
        numbers = (f"{number:.0f}" if number >= 10 else f"{number:.2g}" for number in (median, worst))
        return self.case, self.what, str(len(self.values)), *numbers, f"{self.bound:g} {self.unit}".strip()


@dataclass
class Bounds:
    """Measures for one case and keeps it for the table."""

    case: str
    rows: list[Row] = field(default_factory=list)
    _pools: list[AnyPool] = field(default_factory=list)

    def started(self, pool: AnyPool) -> None:
        """Take the starts of this pool for the measure of all times."""
        self._pools.append(pool)

    def check(self, what: str, values: float | Sequence[float], bound: float, unit: str = "ms") -> None:
        """Record, print, and fail when the median is beyond the bound.

        A time is compared with the starts of the test's own pools, see `scaled`; without any it is only recorded.
        """
        values = list(values) if isinstance(values, Sequence) else [values]
        if unit in MS_OF:
            start_ms = max((pool.started_ms for pool in self._pools), default=0.0)
            bound = scaled(bound * MS_OF[unit], start_ms) / MS_OF[unit] if start_ms else math.inf
        self.rows.append(Row(self.case, what, values, bound, unit))
        shown = ", ".join(f"{value:.3g}" for value in values)
        print(f"{self.case}: {what}: {shown} (bound: {bound:g} {unit})")
        assert statistics.median(values) <= bound, f"{what}: {shown} {unit}, beyond {bound:g}"

    @contextlib.contextmanager
    def within(self, what: str, bound_ms: float) -> Iterator[None]:
        """Check how long what is done inside takes."""
        began_s = time.monotonic()
        yield
        self.check(what, (time.monotonic() - began_s) * 1000, bound_ms)


def show(rows: Sequence[Row], terminal: pytest.TerminalReporter) -> None:
    """The table of all that was measured."""
    if not rows:
        return
    lines = [("case", "measured", "n", "median", "worst", "bound"), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    terminal.section("what the faults cost")
    for line in lines:
        left = "  ".join(text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True))
        right = "  ".join(text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True))
        terminal.write_line(f"{left}  {right}")


# Shared memory, read from outside: it costs the arbiter nothing, so it does not disturb what is measured


def shared_state_of(pid: int) -> SharedState:
    """The mapping of a running arbiter."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(link.readlink()).startswith("/memfd:supervisor-shared-state"):
                shared = SharedState(os.open(link, os.O_RDWR))
                os.close(shared.fd)
                return shared
    raise LookupError(f"process {pid} has no shared")


def ready_again_ms(shared: SharedState, incarnations: dict[int, int], since_ns: int) -> dict[int, float]:
    """Slot -> ms from `since_ns` until an incarnation later than the given one was READY, by its own clock."""

    def found() -> dict[int, float]:
        times = {}
        for slot, incarnation in incarnations.items():
            words = shared.slot(slot)
            ready_ns = words.get(SlotField.READY_NS)
            if words.get(SlotField.INCARNATION) > incarnation and ready_ns > since_ns:
                times[slot] = (ready_ns - since_ns) / 1e6
        return times if len(times) == len(incarnations) else {}

    return eventually(found, 30, 0.002, what=f"slots {sorted(incarnations)} are READY again")


def incarnations(shared: SharedState, slots: Sequence[int]) -> dict[int, int]:
    """Slot -> the incarnation that runs in it."""
    return {slot: shared.slot(slot).get(SlotField.INCARNATION) for slot in slots}
