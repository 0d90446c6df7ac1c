"""Who drains a backlog: the pool, a loop on redis-py, the program in C. Each takes turns on the same backlog.

The backlog is written once. At each turn a group is set back to its beginning; an entry is added, which
wakes those that wait. So a pool is started once, and its start is in no figure.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis as redis_py

from benchmarks.reference import program
from benchmarks.tools import HOST, project
from benchmarks.workloads import WORKLOADS, Workload
from supervisor.bench.window import Look, Window
from tests.support.servers import RedisServer

POLL_S = 0.005
TURN_LIMIT_S = 120.0
#: How much the program in C reads at once.
COUNT = 100
ROOT = Path(__file__).parent.parent
#: The path goes to the end: the project's own `handlers` must be found before this repository's.
HANDLER = """
import sys
sys.path.append({root!r})
from benchmarks.workloads import WORKLOADS
from supervisor import handler

work = handler({stream!r}, group={group!r}, **{options!r})(WORKLOADS[{name!r}].handler)
"""


@dataclass(frozen=True)
class Turn:
    """What one turn gave."""

    #: Messages a second.
    rate: float
    #: Microseconds of CPU a message, of the processes that drain.
    cpu_us: float
    #: The same of the server; 0 where it is not measured.
    server_us: float = 0.0


class Backlog:
    """A stream full of entries that all contestants drain, each in a group of its own."""

    def __init__(
        self, redis: redis_py.Redis, stream: str, entries: int, fields: dict[str, str], *, server_pid: int = 0
    ) -> None:
        self.redis, self.stream, self.entries = redis, stream, entries
        self._server_pids = [server_pid] if server_pid else []
        self._fields = fields
        with redis.pipeline(transaction=False) as pipe:
            for number in range(entries):
                pipe.xadd(stream, fields)  # type: ignore[arg-type]  # dict is invariant
                if number % 1000 == 999:
                    pipe.execute()
            pipe.execute()

    def set_back(self, group: str) -> None:
        """Have the group begin again, and wake those that wait."""
        try:
            self.redis.xgroup_create(self.stream, group, id="0", mkstream=True)
        except redis_py.ResponseError:  # it exists
            self.redis.xgroup_setid(self.stream, group, id="0", entries_read=0)
        self.redis.xadd(self.stream, self._fields)  # type: ignore[arg-type]
        self.entries += 1

    def done(self, group: str) -> int:
        """How many entries the group has read and acked."""
        for found in self.redis.xinfo_groups(self.stream):
            if found["name"] == group.encode():
                return int(found["entries-read"] or 0) - int(found["pending"])
        return 0

    def drain(self, group: str, pids: Sequence[int], alive: Callable[[], bool]) -> Turn:
        """Watch a group drain all. Raises RuntimeError when it does not."""
        ours, server, until_s = Window(self.entries), Window(self.entries), time.monotonic() + TURN_LIMIT_S
        done = 0
        while not ours.complete or done < self.entries:
            done, now_s = self.done(group), time.perf_counter()
            if not ours.complete:
                ours.saw(Look(now_s, done, sum(map(cpu_s, pids))))
                server.saw(Look(now_s, done, sum(map(cpu_s, self._server_pids))))
            if done < self.entries:
                if time.monotonic() > until_s or (not alive() and self.done(group) == done):
                    raise RuntimeError(f"{group} stopped at {done:,} of {self.entries:,}")
                time.sleep(POLL_S)
        return Turn(ours.rate, ours.cpu_us, server.cpu_us)


def cpu_s(pid: int) -> float:
    """CPU seconds of all threads of a process, to the nanosecond where the kernel tells."""
    try:
        found = [path.read_text().split()[0] for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
        if found:
            return sum(map(int, found)) / 1e9
        times = psutil.Process(pid).cpu_times()
    except (OSError, psutil.Error, IndexError):
        return 0.0
    return float(times.user + times.system)


class Contestant:
    """Drains the backlog when it is its turn."""

    def __init__(self, title: str, backlog: Backlog, group: str) -> None:
        self.title, self.backlog, self.group = title, backlog, group

    def turn(self) -> Turn:
        """Drain all of it once."""
        raise NotImplementedError


class PoolContestant(Contestant):
    """A pool that runs all the time."""

    def __init__(self, title: str, backlog: Backlog, group: str, pids: list[int], alive: Callable[[], bool]) -> None:
        super().__init__(title, backlog, group)
        self.pids, self._alive = pids, alive

    def turn(self) -> Turn:
        """Set its group back."""
        self.backlog.set_back(self.group)
        return self.backlog.drain(self.group, self.pids, self._alive)


class ProgramContestant(Contestant):
    """Processes that are started at each turn, and leave when nothing is left."""

    def __init__(self, title: str, backlog: Backlog, group: str, commands: list[list[str]]) -> None:
        super().__init__(title, backlog, group)
        self._commands = commands

    def turn(self) -> Turn:
        """Start them and wait until they leave."""
        self.backlog.set_back(self.group)
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(subprocess.Popen(words, cwd=ROOT)) for words in self._commands]
            try:
                return self.backlog.drain(
                    self.group, [process.pid for process in running], lambda: any(p.poll() is None for p in running)
                )
            finally:
                for process in running:
                    process.terminate()


def address(server: RedisServer, url: str) -> str:
    """The arguments that name the server to the programs in C."""
    return str(server.socket) if url.startswith("unix") else f"127.0.0.1:{server.port}"


def in_c(backlog: Backlog, server: RedisServer, url: str, *, count: int = COUNT) -> ProgramContestant | None:
    """The program in C; None where it can't be built."""
    built = program("drain")
    if built is None:
        return None
    words = [str(built), address(server, url), backlog.stream, "c", "c", str(count)]
    return ProgramContestant("C", backlog, "c", [words])


def loop(
    backlog: Backlog, url: str, workload: str, *, kind: str = "pipeline", processes: int = 1, title: str = "redis-py"
) -> ProgramContestant:
    """A loop on redis-py, as of `benchmarks.loops`."""
    words = [sys.executable, "-m", "benchmarks.loops", kind, url, backlog.stream, kind, workload]
    return ProgramContestant(title, backlog, kind, [words] * processes)


@contextmanager
def pool(
    backlog: Backlog, url: str, workload: str, *, workers: int = 1, title: str = "pool"
) -> Iterator[PoolContestant]:
    """`supervisor start`, READY, with a group that was at the end of the backlog when it began."""
    chosen: Workload = WORKLOADS[workload]
    group = f"pool-{workload}-{workers}"
    with contextlib.suppress(redis_py.ResponseError):
        backlog.redis.xgroup_create(backlog.stream, group, id="$")
    text = HANDLER.format(stream=backlog.stream, group=group, options=chosen.options, name=workload, root=str(ROOT))
    with project(text, host=f"{HOST}-{workers}", redis_url=url, workers=workers) as running:
        running.start()
        pids = list(running.pids().values())
        yield PoolContestant(title, backlog, group, pids, lambda: running.exit_code() is None)
