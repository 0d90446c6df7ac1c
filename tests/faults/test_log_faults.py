"""A log that can't be written: a full disk, a pipe that is not read, a closed pipe."""

import contextlib
import fcntl
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import Bounds, Watch, incarnations, outage_lines, ready_again_ms, shared_state_of
from tests.support.pool import Pool
from tests.support.recording import RECORD, seen
from tests.support.standins import ROOT
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
PIPE_BYTES = 4096
DROPPED = "lines before this one were dropped"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class LogPipe:
    """A small pipe as the pool's stderr, read only when `read` is called."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self._write_fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self.text = ""

    def hide(self) -> None:
        """Replace the path by an empty file once the pool has the pipe, so that reading it does not block."""
        self._path.unlink()
        self._path.touch()

    def read(self) -> str:
        """Return everything that was read so far."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._fd, 65536):
                self.text += chunk.decode()
        return self.text

    def is_full(self) -> bool:
        """Return whether a write would block."""
        poll = select.poll()
        poll.register(self._write_fd, select.POLLOUT)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the reading end."""
        for fd in (self._fd, self._write_fd):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._fd = self._write_fd = -1


@pytest.fixture
def log_pipe(project: Path) -> Iterator[LogPipe]:
    made = LogPipe(project / "err")
    yield made
    made.close()


def start_with(start_pool: StartPool, watch: Watch, pipes: list[LogPipe], handlers: str, **options: Any) -> Pool:
    pool = start_pool(handlers, ready=False, **options)
    for pipe in pipes:
        pipe.hide()
    pool.wait_ready()
    watch.measure(pool)
    return pool


def check_alive(pool: Pool, redis: Any, bound: Bounds, what: str) -> None:
    """Check that workers are replaced, messages handled and commands answered."""
    shared, before = shared_state_of(pool.pid), pool.pids()
    was = incarnations(shared, [1])
    killed_ns = time.monotonic_ns()
    os.kill(before[1], signal.SIGKILL)
    bound.check(f"kill -9 of a worker until READY, {what}", ready_again_ms(shared, was, killed_ns)[1], 500)
    redis.xadd("events", {"n": what})
    eventually(lambda: seen(pool)[what.replace(" ", "_")] == 1)
    with bound.within(f"an answer of the arbiter, {what}", 100):
        pool.ask("ping")
    other = pool.worker(0)
    assert other["pid"] == before[0]


WORDS = RECORD + (
    """
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        record(message.fields["n"].replace(" ", "_"))
"""
)


def test_38_disk_full_log(
    small_disk: Path, project: Path, start_pool: StartPool, redis_server: Any, bound: Bounds
) -> None:
    (project / "err").symlink_to(small_disk / "log")
    pool = start_pool(WORDS, redis_url=redis_server.url, workers=2)
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(100_000))
    for _ in range(20):  # what is left of the last page
        pool.send(signal.SIGUSR1)
        pool.ask("ping")
    size = (small_disk / "log").stat().st_size
    check_alive(pool, redis_server.sync(), bound, "disk full")
    pool.send(signal.SIGHUP)
    eventually(lambda: (pool.ask("status")["last_operation"] or {}).get("ok"), 20)
    assert (small_disk / "log").stat().st_size == size, "nothing could be written"
    filler.unlink()
    check_alive(pool, redis_server.sync(), bound, "room again")
    eventually(lambda: DROPPED in pool.output)
    # The first new line continues after the last one that was cut.
    eventually(lambda: last_event(small_disk / "log", size) == ("worker ready", pool.pids()[1]))


def last_event(path: Path, offset: int) -> tuple[str, int]:
    """Return event and pid of the last whole line after the one that `offset` cuts."""
    [*_, last] = [json.loads(line) for line in new_lines(path, offset)[1:] if line.startswith("{") and line[-1] == "}"]
    return last["event"], last["pid"]


def new_lines(path: Path, offset: int) -> list[str]:
    return path.read_bytes()[offset:].decode().splitlines()


def test_39_stderr_pipe_reader_stalls(
    log_pipe: LogPipe, start_pool: StartPool, watch: Watch, redis_server: Any, bound: Bounds
) -> None:
    pool = start_with(
        start_pool,
        watch,
        [log_pipe],
        WORDS
        + """
    import sys
    @handler("prints", group="workers")
    async def prints(message: Message) -> None:
        record("tries")
        sys.stderr.write("x" * 20_000 + "\\n")
        record("printed")
""",
        redis_url=redis_server.url,
        workers=2,
        config="[pool]\nbeat_limit_s = 2.0\n",
    )
    eventually(lambda: pool.send(signal.SIGUSR1) or log_pipe.is_full(), what="the pipe is full")
    check_alive(pool, redis_server.sync(), bound, "pipe full")
    # A handler that writes to stderr itself does not wait either.
    redis_server.sync().xadd("prints", {"n": "1"})
    eventually(lambda: seen(pool)["printed"] == 1)
    assert log_pipe.is_full() and DROPPED not in log_pipe.text and seen(pool)["tries"] == 1
    eventually(lambda: pool.send(signal.SIGUSR1) or DROPPED in log_pipe.read())
    # A line that does not fit into what is left of the pipe is dropped, so it is asked for again.
    status = eventually(lambda: pool.send(signal.SIGUSR1) or status_after_drops(log_pipe.read()))
    assert status["pid"] == pool.pid
    assert all(service["restarts"] == 0 for service in status["services"])


def status_after_drops(text: str) -> dict[str, Any] | None:
    """Return the first line of status that is whole, after lines were dropped."""
    lines = text.partition(DROPPED)[2].splitlines(keepends=True)[1:]
    for line in lines:
        with contextlib.suppress(ValueError):  # a line that was cut, and then another process's
            if line.startswith("{") and line.endswith("}\n") and (found := json.loads(line))["event"] == "status":
                return dict(found)
    return None


def test_39_stderr_pipe_many_writers(bound: Bounds) -> None:
    # Another process fills the pipe between poll and write: the write must not wait for the reader.
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(read_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    code = "from supervisor.log import StderrLines\nlines = StderrLines()\nwhile True: lines.msg('x' * 3000)"
    writers = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=write_fd) for _ in range(4)]
    try:
        os.close(write_fd)
        waiting, rounds = 0, 40
        for _ in range(rounds):
            os.read(read_fd, PIPE_BYTES)
            time.sleep(0.02)  # the reader is slow
            waiting += any(is_waiting(writer.pid) for writer in writers)
        bound.check(f"of {rounds} times, how often some process waited for the reader", waiting, 0, "")
    finally:
        os.close(read_fd)
        for writer in writers:
            writer.kill()
            writer.wait()


def is_waiting(pid: int) -> bool:
    """Return whether the process sleeps in write(2)."""
    path = Path(f"/proc/{pid}/syscall")
    call = path.read_text()
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return call.startswith("1 0x2 ") and state == "S" and path.read_text() == call


def test_40_stderr_epipe(
    log_pipe: LogPipe, project: Path, start_pool: StartPool, watch: Watch, redis_server: Any, bound: Bounds
) -> None:
    out = LogPipe(project / "out")
    pool = start_with(start_pool, watch, [log_pipe, out], WORDS, redis_url=redis_server.url, workers=2)
    log_pipe.close()
    out.close()
    check_alive(pool, redis_server.sync(), bound, "pipes closed")
    arbiter, before = pool.pid, pool.pids()
    pool.send(signal.SIGHUP)
    operation = eventually(lambda: pool.ask("status")["last_operation"], 20)
    assert operation["ok"], operation
    status = pool.wait_ready()
    assert status["pid"] == arbiter and not set(before.values()) & set(pool.pids().values())
    check_alive(pool, redis_server.sync(), bound, "pipes closed and restarted")


@pytest.mark.long
def test_an_outage_of_redis_has_a_headline(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(WORDS, redis_url=redis_server.url, workers=4)
    redis_server.kill()
    [line] = eventually(lambda: pool.events("Redis unavailable"))
    assert line["level"] == "error" and 1 <= line["workers"] <= line["of"] == 4
    eventually(lambda: [line for line in pool.events("can't read") if line.get("repeated")], 20)
    reasons = outage_lines(pool)
    times = sorted(datetime.fromisoformat(line["timestamp"]) for line in reasons)
    assert all((later - earlier).total_seconds() > 4.5 for earlier, later in itertools.pairwise(times))
    redis_server.start()
    assert eventually(lambda: pool.events("Redis available"))[0]["outage_s"] > 1
    assert len(pool.events("Redis unavailable")) == 1
