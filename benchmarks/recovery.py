"""What a crash costs: from `kill -9` of a worker that has messages in hand until they run again.

Each handler run appends its worker's pid, the message's id and the monotonic time to one file. The
first run of a message holds it until the benchmark ends; a second run returns at once. A round kills
one worker, and takes the time until the first and until the last of its pending messages was started
by another process. Each slot is killed once, so what is measured is the first restart, not a backoff.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import redis as redis_py

from benchmarks.tools import HOST, STREAM, Report, arguments, median, project, say, server
from tests.support.pool import Pool
from tests.support.waiting import eventually

GROUP = "recovery"
#: A worker is killed when it has at least this many messages in hand.
HELD_MIN = 4
HANDLER = f"""
import asyncio, os, time
from supervisor import Message, handler

LOG = os.open("runs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@handler({STREAM!r}, group={GROUP!r}, timeout_s=600)
async def handle(message: Message) -> None:
    os.write(LOG, f"{{os.getpid()}} {{message.id}} {{time.monotonic_ns()}}\\n".encode())
    try:
        os.close(os.open(f"first-{{message.id}}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    while not os.path.exists("release"):
        await asyncio.sleep(0.05)
"""


def runs(log: Path) -> list[tuple[int, str, int]]:
    """All runs so far: pid, id, monotonic ns."""
    if not log.exists():
        return []
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(int(line[0]), line[1], int(line[2])) for line in lines if len(line) == 3]


def in_hand(client: redis_py.Redis, slot: int) -> set[str]:
    """The ids in the pending list of a slot's consumer."""
    found: Any = client.xpending_range(STREAM, GROUP, "-", "+", 1000, consumername=f"{HOST}:{slot}")
    return {entry["message_id"].decode() for entry in found}


def one_round(pool: Pool, client: redis_py.Redis, slot: int, messages: int) -> tuple[float, float, int]:
    """Kill the worker in `slot`: ms to the first and to the last of its messages, and how many it had."""
    log = pool.folder / "runs"
    held = in_hand(client, slot)
    while len(held) < HELD_MIN:
        for _ in range(messages):
            client.xadd(STREAM, {"n": "1"})
        eventually(lambda: len({ids for _, ids, _ in runs(log)}) == client.xlen(STREAM), 20, 0.05, "all were started")
        held = in_hand(client, slot)
    pid = pool.pids()[slot]
    started = {ids for by, ids, _ in runs(log) if by == pid}
    if not held <= started:
        raise RuntimeError(f"worker {pid} holds messages that it has not started: {held - started}")
    killed_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)

    def again() -> dict[str, int]:
        found = {ids: ns for by, ids, ns in reversed(runs(log)) if by != pid and ids in held and ns > killed_ns}
        return found if set(found) == held else {}

    times = [(ns - killed_ns) / 1e6 for ns in eventually(again, 30, 0.002, what="all of them run again").values()]
    return min(times), max(times), len(held)


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=16)
    parser.add_argument("--workers", type=int, default=8, help="workers of the pool (default: 8)")
    parser.add_argument("--messages", type=int, default=32, help="messages published for a round (default: 32)")
    options = parser.parse_args()
    rounds: list[tuple[float, float, int]] = []
    with server(options) as running, running.sync() as client:
        report = Report(
            f"Recovery after kill -9 of one of {options.workers} workers, {options.rounds} rounds",
            ("ms from the kill until", "median", "lowest", "highest"),
        )
        report.measured_on(running)
        while len(rounds) < options.rounds:
            client.flushdb()
            with project(HANDLER, redis_url=running.url, workers=options.workers) as pool:
                pool.start()
                for slot in range(min(options.workers, options.rounds - len(rounds))):
                    rounds.append(one_round(pool, client, slot, options.messages))
                    say(f"round {len(rounds)}: {rounds[-1][0]:.1f} ms, all {rounds[-1][2]} by {rounds[-1][1]:.1f} ms")
                (pool.folder / "release").touch()
    for name, column in (("the first pending message runs again", 0), ("all of them have run again", 1)):
        values = [found[column] for found in rounds]
        report.row(name, median(values), min(values), max(values))
    held = [found[2] for found in rounds]
    report.notes.append(f"The killed workers had {min(held)} to {max(held)} messages in hand.")
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
