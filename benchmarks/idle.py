"""What a pool costs that has nothing to do: CPU of all its processes, commands a second at Redis, memory.

The pool has two groups on one stream and its HTTP service. PSS divides shared pages by the processes that
share them; what the workers cost beyond the arbiter is the sum of theirs.
"""

import time
from typing import Any

import psutil

from benchmarks.contestants import cpu_s as process_cpu_s
from benchmarks.tools import STREAM, Report, arguments, median, project, say, server
from tests.support.pool import Pool
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
COLUMNS = ("", "% of one core", "PSS MiB", "PSS MiB each")
#: CPU by what, commands a second, PSS by what.
Round = tuple[dict[str, float], float, dict[str, float]]
#: After the start, until imports and first reads are over.
SETTLE_S = 3.0


def processes(pool: Pool) -> dict[str, list[psutil.Process]]:
    """The pool's processes by what they are."""
    status = pool.status()
    services = {service["name"]: service["pid"] for service in status["services"]}
    found = {name: [psutil.Process(pid)] for name, pid in services.items() if pid}
    found["arbiter"] = [psutil.Process(pool.pid)]
    found["workers"] = [psutil.Process(worker["pid"]) for worker in status["workers"]]
    return found


def cpu_s(family: dict[str, list[psutil.Process]]) -> dict[str, float]:
    """CPU seconds so far, by what the processes are."""
    return {name: sum(process_cpu_s(process.pid) for process in members) for name, members in family.items()}


def one_round(running: RedisServer, workers: int, seconds: float) -> Round:
    """(percent of one core by what, commands a second, PSS in MiB by what)."""
    with project(HANDLER, redis_url=running.url, workers=workers, api=True) as pool, running.sync() as client:
        client.flushall()
        pool.start()
        time.sleep(SETTLE_S)
        family = processes(pool)
        before, commands, at = cpu_s(family), _commands(client), time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - at
        after, more = cpu_s(family), _commands(client)
        cpu = {name: (after[name] - before[name]) / passed * 100 for name in after}
        infos: Any = {name: [process.memory_full_info() for process in members] for name, members in family.items()}
        pss = {name: sum(getattr(info, "pss", 0) for info in members) / 2**20 for name, members in infos.items()}
        return cpu, (more - commands - 1) / passed, pss


def _commands(client: Any) -> int:
    return int(client.info("stats")["total_commands_processed"])


def rows(rounds: list[Round], workers: int) -> list[list[object]]:
    """For a table: medians of the rounds."""
    found: list[list[object]] = []
    for name in ("arbiter", "workers", "keeper", "api"):
        size = median([pss[name] for _, _, pss in rounds])
        each = size / (workers if name == "workers" else 1)
        found.append([name, median([cpu[name] for cpu, _, _ in rounds]), size, each])
    total = median([sum(cpu.values()) for cpu, _, _ in rounds])
    found.append(["all", total, median([sum(pss.values()) for _, _, pss in rounds]), ""])
    found.append(["commands a second at Redis", median([commands for _, commands, _ in rounds]), "", ""])
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=3)
    parser.add_argument("--workers", type=int, default=8, help="workers of the pool (default: 8)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement (default: 20)")
    options = parser.parse_args()
    report = Report(
        f"An idle pool of {options.workers} workers, {options.rounds} rounds of {options.seconds:g} s",
        COLUMNS,
    )
    with server(options) as running:
        report.measured_on(running)
        rounds = []
        for number in range(options.rounds):
            rounds.append(one_round(running, options.workers, options.seconds))
            cpu, commands, _ = rounds[-1]
            say(f"round {number + 1}: {sum(cpu.values()):.2f} % of one core, {commands:.1f} commands/s")
    for row in rows(rounds, options.workers):
        report.row(*row)
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
