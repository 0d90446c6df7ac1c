"""How evenly workers share a backlog of handlers that block: total time beside the ideal.

The handler is `async def` and blocks its loop with `time.sleep`, the worst that a handler can do. The
ideal is the sum of all that blocks, divided by the workers. Time runs from the start of the publishing
until the last handler has ended; the workers are READY before.
"""

import time
from collections import Counter
from pathlib import Path

from benchmarks.tools import STREAM, Report, arguments, median, project, say, server
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

GROUP = "sharing"
HANDLER = f"""
import os, time
from supervisor import Message, handler

LOG = os.open("runs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@handler({STREAM!r}, group={GROUP!r}, timeout_s=600)
async def handle(message: Message) -> None:
    slow_s = float(message.fields["slow_s"])
    if slow_s:
        time.sleep(slow_s)
    os.write(LOG, f"{{os.getpid()}} {{time.monotonic_ns()}} {{slow_s}}\\n".encode())
"""


def one_round(
    running: RedisServer, workers: int, messages: int, every: int, slow_s: float
) -> tuple[float, Counter[str]]:
    """Seconds until all is done, and how many slow messages each worker took."""
    with running.sync() as client, project(HANDLER, redis_url=running.url, workers=workers) as pool:
        client.flushdb()
        pool.start()
        begun_ns = time.monotonic_ns()
        with client.pipeline(transaction=False) as pipe:
            for number in range(messages):
                pipe.xadd(STREAM, {"slow_s": str(slow_s if number % every == 0 else 0)})
            pipe.execute()
        log = pool.folder / "runs"
        eventually(lambda: _lines(log) >= messages, 120, 0.02, what=f"{messages} messages are done")
        runs = [line.split() for line in log.read_text().splitlines()]
        last_ns = max(int(ns) for _, ns, _ in runs)
        return (last_ns - begun_ns) / 1e9, Counter(pid for pid, _, slow in runs if float(slow))


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=3)
    parser.add_argument("--workers", type=int, default=8, help="workers of the pool (default: 8)")
    parser.add_argument("--slow-ms", type=float, default=50.0, help="how long a slow handler blocks (default: 50)")
    options = parser.parse_args()
    report = Report(
        f"Sharing of handlers that block {options.slow_ms:g} ms over {options.workers} workers",
        ("case", "s (median)", "s (ideal)", "ratio", "highest ratio", "slow ones per worker"),
    )
    slow_s = options.slow_ms / 1000
    with server(options) as running:
        report.measured_on(running)
        for name, messages, every in (
            ("400 slow", 400, 1),
            ("400, each tenth slow", 400, 10),
            ("4000, each tenth slow", 4000, 10),
        ):
            found = [one_round(running, options.workers, messages, every, slow_s) for _ in range(options.rounds)]
            times = [seconds for seconds, _ in found]
            idle = [0] * sum(options.workers - len(counts) for _, counts in found)
            shares = idle + [count for _, counts in found for count in counts.values()]
            ideal = messages / every * slow_s / options.workers
            say(f"{name}: " + ", ".join(f"{seconds:.2f} s" for seconds in times))
            report.row(
                name, median(times), ideal, median(times) / ideal, max(times) / ideal, f"{min(shares)}-{max(shares)}"
            )
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
