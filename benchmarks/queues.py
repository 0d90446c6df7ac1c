"""The pool beside other queues on Redis, each in its best configuration, in turn on one server.

    python -m benchmarks.queues --only faststream-batch --only taskiq

Each queue publishes its backlog once in its own way; what that wrote is kept and put back before each
turn. The workers are started once, and stopped (SIGSTOP) while it is the pool's turn. The rate is taken
between 90 % and 10 % of the backlog left. All run two worker processes over TCP with a task that does
nothing. `make bench` installs the queues.
"""

import contextlib
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis as redis_py

from benchmarks.contestants import Backlog, Contestant, Turn, cpu_s, pool
from benchmarks.measure import ratios, spread, take_turns
from benchmarks.tools import STREAM, Report, arguments, median, say, server
from benchmarks.workloads import WORKLOADS
from supervisor.bench.window import Look, Window
from tests.support.servers import RedisServer

ROOT = Path(__file__).parent.parent
APPS = Path(__file__).parent / "queue_apps"
WORKERS = 2
POLL_S = 0.01
#: A queue that has not drained its backlog by then is measured no further.
TURN_LIMIT_S = 60.0
#: Its handler gets a list of messages; those of the others get one message.
BATCH = "faststream-batch"
Left = Callable[[Any], int]


@dataclass(frozen=True)
class Queue:
    """How a queue's workers are started and how far they are."""

    title: str
    distribution: str
    app: str
    command: str
    entries: int
    #: How many are not done yet.
    left: Left
    environment: str = "queues"
    configuration: str = ""
    #: What its workers find in their environment.
    variables: dict[str, str] = field(default_factory=dict)
    #: The entries stay in the stream, so the group is set back instead of the keys.
    stream: str = ""


def length(key: str) -> Left:
    """The length of a list."""
    return lambda redis: int(redis.llen(key))


def unread(stream: str, group: str) -> Left:
    """The entries of a stream that are not acked yet."""

    def count(redis: Any) -> int:
        found = next(one for one in redis.xinfo_groups(stream) if one["name"] == group.encode())
        return int(redis.xlen(stream)) - int(found["entries-read"] or 0) + int(found["pending"])

    return count


QUEUES = {
    BATCH: Queue(
        "FastStream, batch",
        "faststream",
        "faststream_app",
        "faststream run faststream_app:batch --workers 2 --log-level error",
        100_000,
        unread("faststream", "faststream"),
        configuration="StreamSub(batch=True, max_records=100), 2 workers",
        stream="faststream",
    ),
    "faststream": Queue(
        "FastStream, single",
        "faststream",
        "faststream_app",
        "faststream run faststream_app:single --workers 2 --log-level error",
        6_000,
        unread("faststream", "faststream"),
        configuration="StreamSub(max_records=100), 2 workers",
        stream="faststream",
    ),
    "taskiq": Queue(
        "taskiq-redis",
        "taskiq-redis",
        "taskiq_app",
        "taskiq worker --workers 2 --max-async-tasks 1000 --log-level ERROR taskiq_app:broker",
        10_000,
        unread("taskiq", "taskiq"),
        configuration="RedisStreamBroker(xread_count=100), 2 workers, 1,000 async tasks",
        stream="taskiq",
    ),
    "dramatiq": Queue(
        "dramatiq",
        "dramatiq",
        "dramatiq_app",
        "dramatiq --processes 2 --threads 8 --skip-logging dramatiq_app",
        10_000,
        length("dramatiq:default"),
        configuration="Redis broker, no middleware, 2 processes of 8 threads, prefetch 500",
        # By default twice the threads, which is half as fast.
        variables={"dramatiq_queue_prefetch": "500"},
    ),
    "streaq": Queue(
        "streaQ",
        "streaq",
        "streaq_app",
        "streaq run --workers 2 streaq_app:worker",
        2_000,
        lambda redis: int(redis.xlen("streaq:default:queues:normal")),
        configuration="concurrency 100, prefetch 100, no results, 2 workers",
    ),
    "celery": Queue(
        "Celery",
        "celery",
        "celery_app",
        "celery -A celery_app worker -P prefork -c 2 --without-gossip --without-mingle --without-heartbeat"
        " --loglevel ERROR",
        1_500,
        length("celery"),
        configuration="prefork -c 2, prefetch 100, results ignored",
    ),
    "rq": Queue(
        "RQ",
        "rq",
        "rq_app",
        "rq worker-pool -n 2 --worker-class rq.worker.SimpleWorker --quiet --logging-level ERROR --url {url} default",
        600,
        length("rq:queue:default"),
        configuration="worker-pool of 2 SimpleWorkers, no results",
    ),
    "huey": Queue(
        "Huey",
        "huey",
        "huey_app",
        "python -m huey.bin.huey_consumer huey_app.huey -k process -w 2 --quiet --no-periodic",
        10_000,
        length("huey.redis.huey"),
        configuration="RedisHuey, 2 processes, no results",
    ),
    "arq": Queue(
        "arq",
        "arq",
        "arq_app",
        "arq arq_app.WorkerSettings",
        2_000,
        lambda redis: int(redis.zcard("arq:queue")),
        environment="older-queues",
        configuration="max_jobs=100, poll_delay=0.001, no results, 2 workers",
    ),
    "saq": Queue(
        "SAQ",
        "saq",
        "saq_app",
        "saq saq_app.settings --workers 2 --quiet",
        3_000,
        length("saq:saq:queued"),
        environment="older-queues",
        configuration="concurrency 100, no results, 2 workers",
    ),
}
#: It has no option for several workers: that many are started.
ONE_EACH = {"arq"}


class Snapshot:
    """What a queue's own publishing wrote: taken away, to be put back before each turn."""

    def __init__(self, redis: Any) -> None:
        keys = list(redis.scan_iter(count=1000))
        with redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.type(key)
                pipe.dump(key)
                pipe.pttl(key)
            found = pipe.execute()
        self._redis = redis
        self._kept = list(zip(keys, found[1::3], found[2::3], strict=True))
        #: Entries are added again, one by one: a stream that is replaced ends the reads that wait for it.
        self._entries: dict[bytes, list[Any]] = {
            key: [fields for _, fields in redis.xrange(key)]
            for key, kind in zip(keys, found[0::3], strict=True)
            if kind == b"stream"
        }
        redis.flushdb()

    def put_back(self) -> None:
        """At once, so that no worker sees a part."""
        with self._redis.pipeline(transaction=True) as pipe:
            for key, value, ttl_ms in self._kept:
                if key in self._entries:
                    for fields in self._entries[key]:
                        pipe.xadd(key, fields)
                else:
                    pipe.restore(key, max(0, ttl_ms), value, replace=True)
            pipe.execute()


class QueueContestant(Contestant):
    """A queue's workers, which run only while it is their turn."""

    def __init__(
        self, queue: Queue, redis: Any, snapshot: Snapshot | None, processes: list[subprocess.Popen[bytes]]
    ) -> None:
        self.title = queue.title
        self._queue, self._redis, self._snapshot, self._processes = queue, redis, snapshot, processes

    def turn(self) -> Turn:
        """Put the backlog back and watch it go."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGCONT)
        self._refill()
        try:
            return self._drain(family(self._processes))
        finally:
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGSTOP)

    def _refill(self) -> None:
        stream = self._queue.stream
        if self._snapshot is not None:
            self._snapshot.put_back()
            return
        self._redis.xgroup_setid(stream, stream, id="0", entries_read=0)
        ((_, fields),) = self._redis.xrange(stream, count=1)
        self._redis.xadd(stream, fields)

    def _drain(self, pids: list[int]) -> Turn:
        entries = self._queue.left(self._redis)
        window, until = Window(entries), time.monotonic() + TURN_LIMIT_S
        while (left := self._queue.left(self._redis)) > 0 or not window.complete:
            if not window.complete:
                window.saw(Look(time.perf_counter(), entries - left, sum(map(cpu_s, pids))))
            if time.monotonic() > until or any(process.poll() is not None for process in self._processes):
                raise RuntimeError(f"{self.title} stopped with {left:,} of {entries:,} left")
            time.sleep(POLL_S)
        return Turn(window.rate, window.cpu_us)


def family(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    """The processes and all below them."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    return found


def binary(queue: Queue, name: str) -> Path:
    """A command of the environment that the queue is installed in."""
    return ROOT / ".venv" / queue.environment / "bin" / name


def version(queue: Queue) -> str | None:
    """The installed version; None where it is not installed."""
    text = f"from importlib.metadata import version; print(version({queue.distribution!r}))"
    try:
        done = subprocess.run([binary(queue, "python"), "-c", text], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@contextmanager
def workers(name: str, running: RedisServer) -> Iterator[QueueContestant]:
    """The queue with its backlog published and its workers started."""
    queue = QUEUES[name]
    url = running.tcp_url
    redis = redis_py.Redis.from_url(url)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VIRTUAL_ENV")}
    environment |= {"QUEUE_URL": url, "PYTHONPATH": str(APPS), "PYTHONDONTWRITEBYTECODE": "1"}
    if queue.stream:  # the group would begin after the backlog
        redis.xgroup_create(queue.stream, queue.stream, id="0", mkstream=True)
    published = [str(binary(queue, "python")), f"{queue.app}.py", str(queue.entries)]
    subprocess.run(published, cwd=APPS, env=environment, check=True, capture_output=True)
    snapshot = None if queue.stream else Snapshot(redis)
    words = queue.command.format(url=url).split()
    with contextlib.ExitStack() as stack, running.folder.joinpath(f"{name}.log").open("wb") as log:
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(end, processes)
        for _ in range(WORKERS if name in ONE_EACH else 1):
            processes.append(
                subprocess.Popen(
                    [binary(queue, words[0]), *words[1:]],
                    cwd=APPS,
                    env=environment | queue.variables,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        try:
            yield QueueContestant(queue, redis, snapshot, processes)
        except RuntimeError as error:
            error.add_note(running.folder.joinpath(f"{name}.log").read_text(errors="replace")[-1500:])
            raise


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kill all of them; most would first ask for their results, which are not needed."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


COLUMNS = ("", "version", "messages/s", "CPU µs", "pool, messages/s", "pool's ratio", "configuration")


@dataclass(frozen=True)
class Found:
    """Turns of a queue and of the pool beside it."""

    theirs: list[Turn]
    ours: list[Turn]

    @property
    def ratios(self) -> list[float]:
        """The pool's rate beside the queue's, turn by turn."""
        return ratios(self.ours, self.theirs)


def measure(name: str, report: Report, running: RedisServer, entries: int, turns: int) -> Found:
    """Turns of one queue and of the pool on a server of their own."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(running.sync())
        report.measured_on(running)
        contestant = stack.enter_context(workers(name, running))
        backlog = Backlog(client, STREAM, entries, WORKLOADS["message"].fields)
        ours = stack.enter_context(pool(backlog, running.tcp_url, "message", workers=WORKERS))
        found = take_turns([ours, contestant], turns)
        return Found(found[contestant.title], found[ours.title])


def row(name: str, report: Report, running: RedisServer, entries: int, turns: int) -> Found | None:
    """Measure one queue and add its row, also where it is not installed or fails."""
    queue = QUEUES[name]
    say(f"  {queue.title}")
    if (installed := version(queue)) is None:
        report.row(queue.title, *["not installed"] * (len(COLUMNS) - 1))
        return None
    try:
        found = measure(name, report, running, entries, turns)
    except Exception as error:  # of any kind: the others are still measured
        traceback.print_exc()
        say("\n".join([str(error), *getattr(error, "__notes__", [])]))
        report.row(queue.title, installed, *["failed"] * (len(COLUMNS) - 2))
        return None
    report.row(
        queue.title,
        installed,
        median([turn.rate for turn in found.theirs]),
        median([turn.cpu_us for turn in found.theirs]),
        median([turn.rate for turn in found.ours]),
        spread(found.ratios),
        queue.configuration,
    )
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=5)
    parser.add_argument("--only", action="append", choices=[*QUEUES], help="measure only these")
    parser.add_argument("--count", type=int, default=200_000, help="the pool's backlog (default: 200000)")
    options = parser.parse_args()
    report = Report(
        f"Queues on Redis, {WORKERS} worker processes, a task that does nothing, {options.rounds} turns", COLUMNS
    )
    for name in options.only or QUEUES:
        with server(options) as running:
            row(name, report, running, options.count, options.rounds)
    report.show(as_json=options.json)


if __name__ == "__main__":
    main()
