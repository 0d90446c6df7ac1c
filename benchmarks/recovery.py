"""What a crash costs: from `kill -9` of a worker that has messages in hand until they run again.

Each handler run appends its worker's pid, the message's id and the monotonic time to one file. The
first run of a message holds it until the benchmark ends; a second run returns at once. A round kills
one worker, and takes the time until the first and until the last of its pending messages was started
by another process. Each slot is killed once, so what is measured is the first restart, not a backoff.
The reference is `benchmarks.bare_parent`: fork, connect, read the pending list, no more than that.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis as redis_py

from benchmarks.tools import HOST, STREAM, Report, arguments, median, project, say, server
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

GROUP = "recovery"
BARE = Path(__file__).parent / "bare_parent.py"
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


@dataclass
class Subject:
    """Worker processes with a handler that holds what it gets."""

    folder: Path
    stream: str
    #: What their consumers are named after.
    host: str
    #: Of the process in a slot.
    pid: Callable[[int], int]

    def held(self, client: redis_py.Redis, slot: int) -> set[str]:
        """The ids in the pending list of a slot's consumer."""
        found: Any = client.xpending_range(self.stream, GROUP, "-", "+", 1000, consumername=f"{self.host}:{slot}")
        return {entry["message_id"].decode() for entry in found}


@dataclass(frozen=True)
class Recovery:
    """Milliseconds from the kill until the first and until all of the messages ran again, and how many they were."""

    first_ms: float
    all_ms: float
    held: int


@contextmanager
def pool_subject(running: RedisServer, workers: int) -> Iterator[Subject]:
    """`supervisor start`, READY."""
    with project(HANDLER, redis_url=running.url, workers=workers) as pool:
        pool.start()
        yield Subject(pool.folder, STREAM, HOST, lambda slot: pool.pids()[slot])
        (pool.folder / "release").touch()


@contextmanager
def bare_subject(running: RedisServer, workers: int) -> Iterator[Subject]:
    """`benchmarks.bare_parent`, a fork and no more, on a stream of its own."""
    folder, stream = Path(tempfile.mkdtemp(prefix="bench-")), f"{STREAM}:bare"
    (folder / "handlers.py").write_text(HANDLER)
    with running.sync() as client:
        client.xgroup_create(stream, GROUP, id="0", mkstream=True)
    words = [sys.executable, str(BARE), running.url, stream, GROUP, str(workers)]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        try:
            yield Subject(folder, stream, "bare", pids.__getitem__)
        finally:
            parent.terminate()
    shutil.rmtree(folder, ignore_errors=True)


def one_round(subject: Subject, client: redis_py.Redis, slot: int, messages: int) -> Recovery:
    """Kill the process in `slot`, which was not killed before."""
    log = subject.folder / "runs"
    while len(held := subject.held(client, slot)) < HELD_MIN:
        for _ in range(messages):
            client.xadd(subject.stream, {"n": "1"})
        eventually(
            lambda: len({ids for _, ids, _ in runs(log)}) == client.xlen(subject.stream), 20, 0.05, "all were started"
        )
    pid = subject.pid(slot)
    started = {ids for by, ids, _ in runs(log) if by == pid}
    if not held <= started:
        raise RuntimeError(f"worker {pid} holds messages that it has not started: {held - started}")
    killed_ns = time.monotonic_ns()
    os.kill(pid, signal.SIGKILL)

    def again() -> dict[str, int]:
        found = {ids: ns for by, ids, ns in reversed(runs(log)) if by != pid and ids in held and ns > killed_ns}
        return found if set(found) == held else {}

    times = [(ns - killed_ns) / 1e6 for ns in eventually(again, 30, 0.002, what="all of them run again").values()]
    return Recovery(min(times), max(times), len(held))


def measure(running: RedisServer, workers: int, rounds: int, messages: int) -> tuple[list[Recovery], list[Recovery]]:
    """Rounds of the pool and of the bare parent, in turn."""
    ours: list[Recovery] = []
    theirs: list[Recovery] = []
    while len(ours) < rounds:
        with running.sync() as client:
            client.flushdb()
            with pool_subject(running, workers) as pool, bare_subject(running, workers) as bare:
                for slot in range(min(workers, rounds - len(ours))):
                    ours.append(one_round(pool, client, slot, messages))
                    theirs.append(one_round(bare, client, slot, messages))
                    say(
                        f"  turn {len(ours)} of {rounds}: all {ours[-1].held} by {ours[-1].all_ms:.1f} ms;"
                        f" a bare fork: {theirs[-1].all_ms:.1f} ms"
                    )
    return ours, theirs


COLUMNS = ("ms from the kill until", "pool", "lowest", "highest", "bare fork", "ratio", "lowest", "highest")


def rows(ours: list[Recovery], theirs: list[Recovery]) -> list[list[object]]:
    """For a table."""
    found: list[list[object]] = []
    for name, column in (
        ("the first pending message runs again", "first_ms"),
        ("all of them have run again", "all_ms"),
    ):
        values = [getattr(one, column) for one in ours]
        others = [getattr(one, column) for one in theirs]
        beside = [a / b for a, b in zip(values, others, strict=True)]
        found.append(
            [name, median(values), min(values), max(values), median(others), median(beside), min(beside), max(beside)]
        )
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=16)
    parser.add_argument("--workers", type=int, default=8, help="workers of the pool (default: 8)")
    parser.add_argument("--messages", type=int, default=32, help="messages published for a round (default: 32)")
    options = parser.parse_args()
    report = Report(f"Recovery after kill -9 of one of {options.workers} workers, {options.rounds} rounds", COLUMNS)
    with server(options) as running:
        report.measured_on(running)
        ours, theirs = measure(running, options.workers, options.rounds, options.messages)
    for row in rows(ours, theirs):
        report.row(*row)
    held = [one.held for one in ours]
    report.notes.append(f"The killed workers had {min(held)} to {max(held)} messages in hand.")
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
