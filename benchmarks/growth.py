"""Whether a worker grows: its memory after 1,000,000 messages beside that after the first 10,000.

    python -m benchmarks.growth --turns 5 --handler model

The handler does nothing; messages come 10,000 at a time. Each turn is a pool of its own. Private memory is
what the worker shares with nobody.
"""

from dataclasses import dataclass

import psutil

from benchmarks.contestants import Backlog, pool
from benchmarks.tools import STREAM, Report, arguments, median, say, server
from benchmarks.workloads import WORKLOADS
from tests.support.servers import RedisServer

STEP = 10_000
MIB = 2**20
COLUMNS = ("", "after the first 10,000", "at the end", "growth MiB", "lowest", "highest")


@dataclass(frozen=True)
class Sizes:
    """MiB after each step."""

    rss: list[float]
    private: list[float]


def one_turn(running: RedisServer, messages: int, workload: str) -> Sizes:
    """Run a pool of one worker that handles `messages` messages."""
    with running.sync() as client:
        client.flushdb()
        backlog = Backlog(client, STREAM, STEP - 1, WORKLOADS[workload].fields)
        rss, private = [], []
        with pool(backlog, running.url, workload) as ours:
            worker = psutil.Process(ours.pids[0])
            for _ in range(messages // STEP):
                ours.turn()
                found = worker.memory_full_info()
                rss.append(found.rss / MIB)
                private.append(found.uss / MIB)
                client.xtrim(STREAM, maxlen=STEP - 1, approximate=False)
                backlog.entries = STEP - 1
    return Sizes(rss, private)


def measure(running: RedisServer, messages: int, turns: int, workload: str = "dict") -> list[Sizes]:
    """All turns."""
    found = []
    for turn in range(1, turns + 1):
        found.append(one_turn(running, messages, workload))
        last = found[-1].private
        say(f"  turn {turn} of {turns}: {last[0]:.2f} MiB private, {last[-1]:.2f} MiB at the end")
    return found


def rows(turns: list[Sizes]) -> list[list[object]]:
    """For a table."""
    found: list[list[object]] = []
    for name, sizes in (("private MiB", [t.private for t in turns]), ("RSS MiB", [t.rss for t in turns])):
        growth = [size[-1] - size[0] for size in sizes]
        first, last = median([size[0] for size in sizes]), median([size[-1] for size in sizes])
        found.append([name, first, last, median(growth), min(growth), max(growth)])
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=5)
    parser.add_argument("--turns", dest="rounds", type=int, help="the same as --rounds")
    parser.add_argument("--handler", choices=[*WORKLOADS], default="dict", help="the workload (default: dict)")
    parser.add_argument("--messages", type=int, default=1_000_000, help="of a turn (default: 1000000)")
    options = parser.parse_args()
    title = f"A worker's memory over {options.messages:,} messages ({options.handler}), {options.rounds} turns"
    report = Report(title, COLUMNS)
    with server(options) as running:
        report.measured_on(running)
        for row in rows(measure(running, options.messages, options.rounds, options.handler)):
            report.row(*row)
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
