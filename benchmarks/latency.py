"""From XADD to the handler's first line under load, beside a blocking read in C that gets the same arrivals.

    python -m benchmarks.latency --turns 5 --seconds 1.5

The arrivals are an open loop: 20 and 200 a second for an idle pool, then 1 %, 50 %, 80 % and 95 % of the pool's
capacity, which is looked for first: the highest rate at which one worker keeps up with a publisher on the
same machine. Pool and C program take turns, and for an idle pool a bare protocol on uvloop as well. At 20 a
second all cores rest before each message; at 200 the core that publisher and server used last is still awake.
The latter is measured with all processes on one core, too: then no wake-up has to cross cores. p50 and p99 are
medians of the turns, p99.9 is that of all turns together.
"""

import contextlib
import math
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.arrivals import publish, schedule
from benchmarks.contestants import address
from benchmarks.measure import spread
from benchmarks.reference import program
from benchmarks.tools import STREAM, Report, arguments, median, project, say, server
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

LOADS = (0.01, 0.5, 0.8, 0.95)
#: Messages a second that leave the pool idle between any two, and how many of them a turn has at least.
IDLE_RATES, IDLE_MESSAGES = (20.0, 200.0), 100
GROUP = "latency"
#: What is kept up with must be handled this soon, but for one in a hundred.
KEPT_UP_S = 0.05
PROBE_S = 1.0
FIRST_PROBE = 10_000.0
HANDLER = f"""
import os
import time
from array import array

from supervisor import Message, handler

SAMPLES = array("q")
TURNS = iter(range(1_000_000))

@handler({STREAM!r}, group={GROUP!r})
async def handle(event: Message) -> None:
    now_ns = time.monotonic_ns()
    sent_ns = int(event.fields["at"])
    if sent_ns:
        SAMPLES.append(now_ns - sent_ns)
        return
    # The last one of a turn.
    with open("samples", "wb") as file:
        SAMPLES.tofile(file)
    os.rename("samples", f"turn-{{next(TURNS)}}")
    del SAMPLES[:]
"""
#: Nanoseconds, of arrivals at these offsets.
Measure = Callable[[list[int]], "array[int]"]


@dataclass
class Samples:
    """Latencies in nanoseconds, one array a turn."""

    turns: "list[array[int]]" = field(default_factory=list)

    def each_us(self, share: float) -> list[float]:
        """That percentile of each turn."""
        return [percentile_us(turn, share) for turn in self.turns]

    def beside(self, others: "Samples", share: float) -> list[float]:
        """That percentile of each turn, divided by the others'."""
        return [a / b for a, b in zip(self.each_us(share), others.each_us(share), strict=True)]

    def all_us(self, share: float) -> float:
        """That percentile of all turns together."""
        return percentile_us([value for turn in self.turns for value in turn], share)


@dataclass
class Load:
    """One offered load."""

    #: Of the capacity; 0 for an idle pool.
    share: float
    rate: float
    #: Publisher, server and worker share a core.
    one_core: bool = False
    pool: Samples = field(default_factory=Samples)
    #: Empty where there is no C program.
    blocking: Samples = field(default_factory=Samples)
    #: Of an idle pool only.
    protocol: Samples = field(default_factory=Samples)

    @property
    def title(self) -> str:
        """What the table calls it."""
        if self.share:
            return f"{self.share:.0%}, {self.rate:,.0f}/s"
        return f"idle, {self.rate:,.0f}/s" + (", one core" if self.one_core else "")

    def seconds(self, of_a_turn: float) -> float:
        """How long a turn of it takes; longer for the few messages of an idle pool."""
        return of_a_turn if self.share else max(of_a_turn * 1.5, IDLE_MESSAGES / self.rate)

    def ratios(self, percentile: float) -> list[float]:
        """Return the pool's percentile divided by the C program's for each turn, empty if that was not built."""
        return self.pool.beside(self.blocking, percentile) if self.blocking.turns else []


def percentile_us(values: Sequence[int], share: float) -> float:
    """Microseconds that this share of the values kept to."""
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)] / 1000


@contextmanager
def on_one_core(pids: Collection[int]) -> Iterator[None]:
    """Keep these processes, this one and what it starts on one core."""
    everywhere = os.sched_getaffinity(0)
    try:
        for pid in (0, *pids):
            os.sched_setaffinity(pid, {min(everywhere)})
        yield
    finally:
        for pid in (0, *pids):
            os.sched_setaffinity(pid, everywhere)


@contextmanager
def pool_reader(running: RedisServer, client: Any, url: str) -> Iterator[tuple[Measure, Collection[int]]]:
    """A pool of one worker, READY, and the pids of its workers."""
    with project(HANDLER, redis_url=url, workers=1) as pool:
        pool.start()
        turns = iter(range(1_000_000))

        def measure(offsets: list[int]) -> "array[int]":
            publish(address(running, url), STREAM, offsets)
            client.xadd(STREAM, {"at": 0})
            path = pool.folder / f"turn-{next(turns)}"
            eventually(path.exists, 60, what="the pool has handled all")
            return _emptied(client, path.read_bytes())

        yield measure, pool.pids().values()


def other_reader(running: RedisServer, client: Any, url: str, command: Sequence[str | Path]) -> Measure:
    """A program that prints its latencies, started for each turn."""
    stream = f"{STREAM}:other"

    def measure(offsets: list[int]) -> "array[int]":
        client.delete(stream)
        client.xgroup_create(stream, "c", id="0", mkstream=True)
        words = [*command, address(running, url), stream, "c", "c", "100", str(len(offsets))]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            try:
                eventually(lambda: _waits(client), 10, 0.005, what="the program waits")
                publish(address(running, url), stream, offsets)
                out, _ = process.communicate(timeout=60)
            finally:
                process.kill()
        return _emptied(client, out)

    return measure


def _waits(client: Any) -> bool:
    return any(one["cmd"].startswith("xreadgroup") and one["name"] == "" for one in client.client_list())


def _emptied(client: Any, raw: bytes) -> "array[int]":
    client.xtrim(STREAM, maxlen=0, approximate=False)
    found = array("q")
    found.frombytes(raw)
    return found


def capacity(measure: Measure) -> float:
    """The highest rate, within some 10 %, that is kept up with."""

    def kept_up(rate: float) -> bool:
        found = measure(schedule(rate, PROBE_S, seed=1))
        last = found[len(found) * 3 // 4 :]
        result = percentile_us(last, 0.99) / 1e6 < KEPT_UP_S
        say(f"  {rate:,.0f}/s: {'kept up' if result else 'fell behind'}")
        return result

    low, high = 0.0, FIRST_PROBE
    while kept_up(high):
        low, high = high, high * 2
    if low == 0.0:
        raise RuntimeError(f"the pool does not keep up with {FIRST_PROBE:,.0f} messages a second")
    for _ in range(3):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kept_up(middle) else (low, middle)
    return low


def measure_loads(running: RedisServer, client: Any, url: str, turns: int, seconds: float) -> list[Load]:
    """All loads, pool and C in turn."""
    built = program("blocking")
    with contextlib.ExitStack() as stack:
        ours, workers = stack.enter_context(pool_reader(running, client, url))
        theirs = other_reader(running, client, url, [built]) if built else None
        protocol = other_reader(running, client, url, [sys.executable, "-m", "benchmarks.protocol_reader"])
        most = capacity(ours)
        loads = [Load(0.0, rate) for rate in IDLE_RATES]
        if hasattr(os, "sched_setaffinity"):
            loads.append(Load(0.0, IDLE_RATES[-1], one_core=True))
        loads += [Load(share, most * share) for share in LOADS]
        for turn in range(1, turns + 1):
            for load in loads:
                offsets = schedule(load.rate, load.seconds(seconds), seed=turn)
                with on_one_core((running.pid, *workers)) if load.one_core else contextlib.nullcontext():
                    load.pool.turns.append(ours(offsets))
                    if theirs:
                        load.blocking.turns.append(theirs(offsets))
                    if theirs and not load.share:
                        load.protocol.turns.append(protocol(offsets))
            say(f"  turn {turn} of {turns}")
    return loads


def rows(loads: list[Load]) -> Iterator[list[object]]:
    """For a table: load, who, p50, p99, p99.9, the ratios of p50 and p99 with lowest and highest."""
    for load in loads:
        beside = [spread(load.ratios(p)) if load.blocking.turns else "not available" for p in (0.5, 0.99)]
        yield [load.title, "pool", *_percentiles(load.pool), *beside]
        if load.blocking.turns:
            yield [load.title, "C, blocking read", *_percentiles(load.blocking), "", ""]
        if load.protocol.turns:
            beside = [spread(load.protocol.beside(load.blocking, p)) for p in (0.5, 0.99)]
            yield [load.title, "bare protocol, uvloop", *_percentiles(load.protocol), *beside]


def _percentiles(samples: Samples) -> list[float]:
    return [median(samples.each_us(0.5)), median(samples.each_us(0.99)), samples.all_us(0.999)]


COLUMNS = ("load", "", "p50 µs", "p99 µs", "p99.9 µs", "ratio of p50", "ratio of p99")


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=5)
    parser.add_argument("--turns", dest="rounds", type=int, help="the same as --rounds")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a turn at one load (default: 1.5)")
    parser.add_argument("--tcp", action="store_true", help="over TCP instead of a unix socket")
    options = parser.parse_args()
    report = Report(f"XADD to the handler's first line, one worker, {options.rounds} turns", COLUMNS)
    begun = time.monotonic()
    with server(options) as running, running.sync() as client:
        report.measured_on(running)
        url = running.tcp_url if options.tcp else running.url
        for row in rows(measure_loads(running, client, url, options.rounds, options.seconds)):
            report.row(*row)
    say(f"{time.monotonic() - begun:.0f} s")
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
