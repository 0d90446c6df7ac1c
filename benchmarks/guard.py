"""Fails when the pool has become slower than `guard.toml` allows, beside a redis-py loop of the same run.

    python -m benchmarks.guard

It is short, so that CI can run it, and says nothing of how fast the pool is: `make bench` does. A workload
that fails is measured once more, since another process may have had the machine.
"""

import sys
import tomllib
from pathlib import Path

from benchmarks.contestants import Backlog, loop, pool
from benchmarks.measure import ratios, take_turns
from benchmarks.tools import STREAM, Report, arguments, median, say, server
from benchmarks.workloads import WORKLOADS
from tests.support.servers import RedisServer

FLOORS = Path(__file__).parent / "guard.toml"


def measure(running: RedisServer, name: str, entries: int, turns: int) -> dict[str, float]:
    """The two ratios of a workload."""
    with running.sync() as client:
        client.flushdb()
        backlog = Backlog(client, STREAM, entries, WORKLOADS[name].fields)
        with pool(backlog, running.url, name) as ours:
            theirs = loop(backlog, running.url, name)
            found = take_turns([ours, theirs], turns)
    mine, other = found[ours.title], found[theirs.title]
    cpu = median([turn.cpu_us for turn in other]) / median([turn.cpu_us for turn in mine])
    return {"rate": median(ratios(mine, other)), "cpu": cpu}


def main() -> int:
    """1 when a ratio is below its floor."""
    parser = arguments(str(__doc__), rounds=5)
    parser.add_argument("--count", type=int, default=40_000, help="size of the backlog (default: 40000)")
    options = parser.parse_args()
    floors: dict[str, dict[str, float]] = tomllib.loads(FLOORS.read_text())
    report = Report("The pool beside a redis-py loop", ("workload", "ratio", "measured", "floor", ""))
    below = 0
    with server(options) as running:
        report.measured_on(running)
        for name, floor in floors.items():
            say(WORKLOADS[name].title)
            found = measure(running, name, options.count, options.rounds)
            if any(found[kind] < floor[kind] for kind in floor):
                say(f"{name}: below its floor ({found}); once more")
                found = measure(running, name, options.count, options.rounds)
            for kind, lowest in floor.items():
                failed = found[kind] < lowest
                below += failed
                report.row(name, kind, found[kind], lowest, "BELOW" if failed else "ok")
    report.show(as_json=options.json)
    if below:
        say(f"{below} ratio(s) below the floor of {FLOORS.name}: what made the pool slower? (benchmarks/NOTES.md)")
    return 1 if below else 0


if __name__ == "__main__":
    sys.exit(main())
