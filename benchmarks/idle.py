"""What a pool costs that has nothing to do: CPU of all its processes, commands a second at Redis, memory.

The pool has two groups on one stream and its HTTP service. Beside it are as many processes with a loop on
redis-py that blocks in a read, on a server of their own; both are measured at the same moments. PSS divides
shared pages by the processes that share them.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from benchmarks.contestants import cpu_s as cpu_s_of
from benchmarks.measure import spread
from benchmarks.memory import stand_in
from benchmarks.tools import STREAM, Report, arguments, median, project, say, server
from tests.support.servers import RedisServer

HANDLER = f"""
from pydantic import BaseModel, EmailStr
from supervisor import handler

class UserCreated(BaseModel):
    user_id: int
    email: EmailStr

@handler({STREAM!r}, group="first")
async def first(event: UserCreated) -> None:
    pass

@handler({STREAM!r}, group="second")
async def second(event: UserCreated) -> None:
    pass
"""
COLUMNS = ("", "pool", "lowest", "highest", "redis-py loops", "ratio")
NOTE = "A loop only waits for entries: nothing supervises it, and it has no HTTP service."
#: After the start, until imports and first reads are over.
SETTLE_S = 3.0


@dataclass(frozen=True)
class Cost:
    """What a family of processes has cost in one window."""

    #: Percent of one core, by what the processes are.
    cpu: dict[str, float]
    #: MiB of PSS, by what the processes are.
    pss: dict[str, float]
    #: At Redis, a second.
    commands: float


@dataclass(frozen=True)
class Family:
    """Processes by what they are, and a client of the server that only they use."""

    members: dict[str, list[psutil.Process]]
    client: Any

    def used(self) -> tuple[dict[str, float], int]:
        """CPU seconds so far by what the processes are, and commands so far."""
        cpu_s = {name: sum(cpu_s_of(process.pid) for process in found) for name, found in self.members.items()}
        return cpu_s, int(self.client.info("stats")["total_commands_processed"])

    def pss(self) -> dict[str, float]:
        """MiB by what the processes are; 0 where the system has no PSS."""
        infos: Any = {name: [process.memory_full_info() for process in found] for name, found in self.members.items()}
        return {name: sum(getattr(info, "pss", 0) for info in found) / 2**20 for name, found in infos.items()}


@contextmanager
def pool_family(running: RedisServer, workers: int) -> Iterator[Family]:
    """A pool that is READY."""
    with project(HANDLER, redis_url=running.url, workers=workers, api=True) as pool, running.sync() as client:
        pool.start()
        status = pool.status()
        services = {service["name"]: service["pid"] for service in status["services"]}
        members = {"arbiter": [psutil.Process(pool.pid)]}
        members["workers"] = [psutil.Process(worker["pid"]) for worker in status["workers"]]
        members |= {name: [psutil.Process(pid)] for name, pid in services.items() if pid}
        yield Family(members, client)


@contextmanager
def loop_family(running: RedisServer, workers: int) -> Iterator[Family]:
    """As many processes with a loop on redis-py, each in a blocking read."""
    with stand_in("loops", running, workers) as pids, running.sync() as client:
        yield Family({"loops": [psutil.Process(pid) for pid in pids]}, client)


def window(families: Sequence[Family], seconds: float) -> list[Cost]:
    """What each of them costs in the same window."""
    begun_s, before = time.monotonic(), [family.used() for family in families]
    time.sleep(seconds)
    passed_s, after = time.monotonic() - begun_s, [family.used() for family in families]
    costs = []
    for family, (cpu_before, commands_before), (cpu, commands) in zip(families, before, after, strict=True):
        percent = {name: (cpu[name] - cpu_before[name]) / passed_s * 100 for name in cpu}
        # Without the question itself.
        costs.append(Cost(percent, family.pss(), (commands - commands_before - 1) / passed_s))
    return costs


def measure(
    running: RedisServer, beside: RedisServer, workers: int, turns: int, seconds: float
) -> tuple[list[Cost], list[Cost]]:
    """Windows of the pool on `running` and of the loops on `beside`, at the same time."""
    ours, theirs = [], []
    with pool_family(running, workers) as pool, loop_family(beside, workers) as loops:
        time.sleep(SETTLE_S)
        for turn in range(1, turns + 1):
            one, other = window((pool, loops), seconds)
            ours.append(one)
            theirs.append(other)
            say(f"  turn {turn} of {turns}: {sum(one.cpu.values()):.2f} % of one core, {one.commands:.1f} commands/s")
    return ours, theirs


def rows(ours: list[Cost], theirs: list[Cost], workers: int) -> list[list[object]]:
    """For a table: medians of the turns; what the loops have beside it only for the sums."""
    found: list[list[object]] = []

    def add(name: str, values: list[float], others: list[float] | None = None) -> None:
        beside = [a / b for a, b in zip(values, others, strict=True) if b] if others else []
        cells = (median(others) if others else "", spread(beside) if beside else "")
        found.append([name, median(values), min(values), max(values), *cells])

    add("CPU, % of one core", [sum(c.cpu.values()) for c in ours], [sum(c.cpu.values()) for c in theirs])
    for name in ours[0].cpu:
        add(f"CPU, {name}", [cost.cpu[name] for cost in ours])
    add("commands a second at Redis", [c.commands for c in ours], [c.commands for c in theirs])
    add("PSS MiB", [sum(c.pss.values()) for c in ours], [sum(c.pss.values()) for c in theirs])
    for name in ours[0].pss:
        add(f"PSS MiB, {name}", [cost.pss[name] for cost in ours])
    add("PSS MiB, each worker", [cost.pss["workers"] / workers for cost in ours])
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=5)
    parser.add_argument("--workers", type=int, default=8, help="workers of the pool (default: 8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement (default: 10)")
    options = parser.parse_args()
    title = f"An idle pool of {options.workers} workers, {options.rounds} rounds of {options.seconds:g} s"
    report = Report(title, COLUMNS, notes=[NOTE])
    with server(options) as running, server(options) as beside:
        report.measured_on(running)
        ours, theirs = measure(running, beside, options.workers, options.rounds, options.seconds)
    for row in rows(ours, theirs, options.workers):
        report.row(*row)
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
