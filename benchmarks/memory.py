"""Memory of a worker and time until a pool is READY, beside processes that start otherwise.

The stand-ins import what a worker imports, start an event loop and get one answer from Redis:
`fork` forks without freezing the heap, `spawn` starts a new interpreter for each. PSS divides shared
pages by the processes that share them, so the sum of all PSS is what the pool costs.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.tools import STREAM, Report, arguments, median, project, say, server
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

HANDLER = f"""
from pydantic import BaseModel, EmailStr
from supervisor import handler

class UserCreated(BaseModel):
    user_id: int
    email: EmailStr

@handler({STREAM!r}, group="memory")
async def handle(event: UserCreated) -> None:
    pass
"""
Sample = tuple[float, list[int], list[int], list[int]]


def figures(pids: list[int]) -> tuple[list[int], list[int], list[int]]:
    """RSS, PSS (0 where the system has none) and private bytes of the processes."""
    found: list[Any] = [psutil.Process(pid).memory_full_info() for pid in pids]
    return [m.rss for m in found], [getattr(m, "pss", 0) for m in found], [m.uss for m in found]


def pool_sample(running: RedisServer, workers: int) -> Sample:
    """Start a pool; ms from the command to the line that says how many are ready."""
    with project(HANDLER, redis_url=running.url, workers=workers) as pool:
        begun = time.perf_counter()
        pool.start(ready=False)
        eventually(lambda: re.search(rf'"ready": {workers}\b', pool.output), 30, 0.002, "the start screen says READY")
        took_ms = (time.perf_counter() - begun) * 1000
        return took_ms, *figures([worker["pid"] for worker in pool.wait_ready()["workers"]])


@contextmanager
def stand_in(kind: str, running: RedisServer, workers: int) -> Iterator[list[int]]:
    """The pids of a stand-in's children, which are ready; ended at the end."""
    words = [sys.executable, "-m", "benchmarks.stand_ins", kind, str(workers)]
    environment = os.environ | {"STAND_IN_URL": running.url}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        line = parent.stdout.readline()  # when all of them are ready
        if not line:
            raise RuntimeError(f"the stand-in {kind} did not start")
        try:
            yield [int(pid) for pid in line.split()]
        finally:
            parent.communicate("end\n")


def stand_in_sample(kind: str, running: RedisServer, workers: int) -> Sample:
    """Start the stand-in; ms until all of its children are ready."""
    begun = time.perf_counter()
    with stand_in(kind, running, workers) as pids:
        return (time.perf_counter() - begun) * 1000, *figures(pids)


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=3)
    parser.add_argument("--workers", type=int, default=8, help="worker processes (default: 8)")
    options = parser.parse_args()
    report = Report(
        f"Memory and start-up of {options.workers} workers, {options.rounds} rounds",
        ("", "ms to READY", "RSS MB", "PSS MB", "private MB", "PSS MB, all"),
    )
    with server(options) as running:
        report.measured_on(running)
        for name in ("pool", "fork", "spawn"):
            samples = []
            for _ in range(options.rounds):
                is_pool = name == "pool"
                took = (
                    pool_sample(running, options.workers)
                    if is_pool
                    else stand_in_sample(name, running, options.workers)
                )
                samples.append(took)
                say(f"{name}: {took[0]:.0f} ms")
            columns = [[value / 1e6 for s in samples for value in s[index]] for index in (1, 2, 3)]  # type: ignore[union-attr]
            total = median([sum(sample[2]) / 1e6 for sample in samples])
            report.row(name, median([sample[0] for sample in samples]), *(median(column) for column in columns), total)
    report.notes.append("RSS, PSS and private: the median of the workers. ms: from the command, interpreter included.")
    if not Path("/proc/self/smaps_rollup").exists():
        report.notes.append("This system has no PSS; private is what psutil calls USS.")
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
