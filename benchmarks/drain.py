"""One workload, drained in turn by the pool, the program in C and the redis-py loop: the ratio of their rates.

    python -m benchmarks.drain --handler dict --count 100000 --workers 1 --turns 5

A rate is taken between 90 % and 10 % of the backlog left. The ratio is that of the pool's turn to the
reference's turn beside it; its median, lowest and highest are shown. CPU is what the draining processes
used in the same window; for the pool those are its workers. Redis' CPU is in a column of its own.
"""

import contextlib

from benchmarks.contestants import Backlog, Contestant, in_c, loop, pool
from benchmarks.measure import ratios, take_turns
from benchmarks.tools import STREAM, Report, arguments, median, say, server
from benchmarks.workloads import WORKLOADS


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=5)
    parser.add_argument("--turns", dest="rounds", type=int, help="the same as --rounds")
    parser.add_argument("--handler", choices=[*WORKLOADS], default="message", help="the workload (default: message)")
    parser.add_argument("--count", type=int, help="size of the backlog (default: the workload's own)")
    parser.add_argument("--workers", type=int, default=1, help="workers of the pool (default: 1)")
    parser.add_argument("--tcp", action="store_true", help="over TCP instead of a unix socket")
    parser.add_argument("--bare", action="store_true", help="a bare connection with two batches in flight, too")
    options = parser.parse_args()
    workload = WORKLOADS[options.handler]
    entries = options.count or workload.entries
    report = Report(
        f"{workload.title}: {entries:,} messages, {options.workers} worker(s), {options.rounds} turns",
        ("", "messages/s", "lowest", "highest", "CPU µs", "Redis, CPU µs", "pool's ratio", "lowest", "highest"),
    )
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(server(options))
        client = stack.enter_context(running.sync())
        report.measured_on(running)
        url = running.tcp_url if options.tcp else running.url
        say(f"publishing {entries:,} messages ...")
        backlog = Backlog(client, STREAM, entries, workload.fields, server_pid=running.pid)
        contestants: list[Contestant] = [
            stack.enter_context(pool(backlog, url, options.handler, workers=options.workers))
        ]
        contestants += [one for one in [in_c(backlog, running, url)] if one]
        contestants.append(loop(backlog, url, options.handler))
        if options.bare:
            contestants.append(loop(backlog, url, options.handler, kind="bare"))
            contestants[-1].title = "bare connection"
        found = take_turns(contestants, options.rounds)
    for title, turns in found.items():
        rates, beside = [turn.rate for turn in turns], ratios(found["pool"], turns)
        cells = (median(beside), min(beside), max(beside)) if title != "pool" else ("", "", "")
        cpu = median([turn.cpu_us for turn in turns]), median([turn.server_us for turn in turns])
        report.row(title, median(rates), min(rates), max(rates), *cpu, *cells)
    if "C" not in found:
        report.notes.append("C: not available (no compiler, or no headers of libhiredis).")
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
