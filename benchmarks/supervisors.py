"""This pool beside other supervisors of processes, two workers each: the same kill, hang, orphan and crash loop.

1. `killed`: from `kill -9` of a worker until another one is ready. 2. `stopped`: a worker gets SIGSTOP.
3. `blocked`: a worker's event loop is blocked. Both until another one is ready. 4. `orphans`: the
supervisor is killed; how long its workers live on. 5. `crash loop`: both workers crash 0.3 s after their
start; how many are started in 15 s, and what the supervisor's CPU costs meanwhile.

Those that are not installed are left out: `make .venv/.installed-peers` installs them.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from benchmarks import supervised
from benchmarks.tools import STREAM, Report, arguments, median, say, server
from tests.support.pool import clean_environment
from tests.support.servers import RedisServer, free_port

WORKERS = 2
LOOP_S = 15.0
ORPHANS_S = 3.0
#: After the workers are ready their supervisor may still be busy with its own start (celery: two seconds).
SETTLE_S = 3.0
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Peer:
    """How one is started, and what it lacks."""

    package: str
    app: str
    command: str
    #: It runs its workers on an event loop that the benchmark can block.
    has_loop: bool = True


PEERS = {
    "supervisor": Peer("supervisor", supervised.POOL, "python -m supervisor start --workers 2 --no-api --handlers app"),
    "gunicorn + uvicorn worker": Peer(
        "uvicorn_worker",
        supervised.ASGI,
        "gunicorn -w 2 -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port} app:app",
    ),
    "uvicorn": Peer("uvicorn", supervised.ASGI, "uvicorn --workers 2 --port {port} app:app"),
    "granian": Peer(
        "granian",
        supervised.ASGI,
        "granian --interface asgi --workers 2 --respawn-failed-workers --port {port} app:app",
    ),
    "celery": Peer("celery", supervised.CELERY, "celery -A app worker -c 2 --loglevel ERROR", has_loop=False),
    "taskiq": Peer("taskiq_redis", supervised.TASKIQ, "taskiq worker --workers 2 app:broker"),
    "dramatiq": Peer("dramatiq", supervised.DRAMATIQ, "dramatiq --processes 2 --threads 1 app", has_loop=False),
}


class Running:
    """One supervisor with its workers."""

    def __init__(self, name: str, folder: Path, process: subprocess.Popen[bytes], redis: RedisServer) -> None:
        self.peer, self.folder, self.process, self._redis = PEERS[name], folder, process, redis
        self.is_pool = name == "supervisor"

    def ready(self) -> dict[int, float]:
        """Living workers that are ready: pid -> since when, monotonic seconds."""
        return self._told() if self.is_pool else {pid: at for pid, at in self.notes("ready") if _lives(pid)}

    def notes(self, word: str) -> list[tuple[int, float]]:
        """What workers have noted: (pid, monotonic seconds)."""
        path = self.folder / "runs"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(pid), int(ns) / 1e9) for found, pid, ns in lines if found == word]

    def wait_ready(self, without: set[int], limit_s: float) -> float:
        """When all workers were ready again, none of `without` among them. Infinity after the limit."""
        until_s = time.monotonic() + limit_s
        while time.monotonic() < until_s:
            found = {pid: at for pid, at in self.ready().items() if pid not in without}
            if len(found) >= WORKERS:
                return max(found.values())
            if self.process.poll() is not None:
                break
            time.sleep(0.002)
        return float("inf")

    def block(self) -> tuple[int, float]:
        """Block some worker's event loop; its pid and when."""
        if self.is_pool:
            with self._redis.sync() as client:
                client.xadd(STREAM, {"block": "1"})
        else:
            (self.folder / f"block.{min(self.ready())}").touch()
        until_s = time.monotonic() + 5
        while time.monotonic() < until_s:
            done = list(self.folder.glob("blocked.*"))
            if noted := self.notes("blocked"):
                return noted[0]
            if done:
                return int(done[0].suffix[1:]), time.monotonic()
            time.sleep(0.005)
        raise RuntimeError("no worker was blocked")

    def _told(self) -> dict[int, float]:
        from supervisor.control.client import request
        from supervisor.errors import SupervisorError
        from supervisor.settings.load import load
        from supervisor.settings.paths import pool_paths

        try:
            told = request(pool_paths(load(self.folder / "config.toml", environ={}).settings), "status")
        except SupervisorError:
            return {}
        now_s = time.monotonic()
        return {worker["pid"]: now_s for worker in told["workers"] if worker["state"] == "READY"}


@contextmanager
def running(name: str, redis: RedisServer) -> Iterator[Running]:
    """Start it in a folder of its own and wait until all workers are ready."""
    peer, folder = PEERS[name], Path(tempfile.mkdtemp(prefix="bench-"))
    (folder / "common.py").write_text(supervised.COMMON)
    (folder / "app.py").write_text(peer.app)
    (folder / "config.toml").write_text(f'[redis]\nurl = "{redis.url}"\n')
    words = peer.command.format(port=free_port()).split()
    with redis.sync() as client:
        client.flushall()  # among others the lease of a pool that was killed
    environment = clean_environment() | {"PEER_URL": redis.tcp_url, "PYTHONPATH": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(BIN / words[0]), *words[1:]],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    found = Running(name, folder, process, redis)
    family: list[psutil.Process] = []
    try:
        if found.wait_ready(set(), 30) == float("inf"):
            raise RuntimeError(f"{name} did not start:\n{(folder / 'log').read_text()[-2000:]}")
        time.sleep(SETTLE_S)
        yield found
    finally:
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        noted = [psutil.Process(pid) for pid, _ in found.notes("ready") if _lives(pid)]
        for child in {*family, *noted}:
            with contextlib.suppress(psutil.Error):
                child.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def killed_ms(name: str, redis: RedisServer, rounds: int) -> float:
    """The median of `rounds` kills."""
    found = []
    for _ in range(rounds):
        with running(name, redis) as pool:
            before = set(pool.ready())
            at_s, victim = time.monotonic(), min(before)
            os.kill(victim, signal.SIGKILL)
            found.append((pool.wait_ready({victim}, 15) - at_s) * 1000)
    return median(found)


def stopped_s(name: str, redis: RedisServer, limit_s: float) -> float:
    """Until a worker that is stopped is replaced."""
    with running(name, redis) as pool:
        victim, at_s = min(pool.ready()), time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        return pool.wait_ready({victim}, limit_s) - at_s


def blocked_s(name: str, redis: RedisServer, limit_s: float) -> float | None:
    """Until a worker whose loop is blocked is replaced; None where there is no loop."""
    if not PEERS[name].has_loop:
        return None
    with running(name, redis) as pool:
        victim, at_s = pool.block()
        return pool.wait_ready({victim}, limit_s) - at_s


def orphans_ms(name: str, redis: RedisServer) -> float:
    """How long the workers outlive their supervisor; infinity: they do."""
    with running(name, redis) as pool:
        workers = set(pool.ready())
        at_s = time.monotonic()
        pool.process.kill()
        pool.process.wait()
        while time.monotonic() - at_s < ORPHANS_S:
            if not any(map(_lives, workers)):
                return (time.monotonic() - at_s) * 1000
            time.sleep(0.001)
    return float("inf")


def crash_loop(name: str, redis: RedisServer) -> tuple[int, float]:
    """(starts in 15 s, the supervisor's CPU in percent)."""
    with running(name, redis) as pool:
        (pool.folder / "crash").touch()
        victims = set(pool.ready())
        parent = psutil.Process(pool.process.pid)
        times, at_s = parent.cpu_times(), time.monotonic()
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        seen: set[int] = set()
        cpu_s = 0.0
        while time.monotonic() - at_s < LOOP_S and pool.process.poll() is None:
            with contextlib.suppress(psutil.Error):
                now = parent.cpu_times()
                cpu_s = now.user + now.system - times.user - times.system
                if pool.is_pool:
                    seen |= {child.pid for child in parent.children() if _comm(child).startswith("worker")}
            time.sleep(0.01)
        if not pool.is_pool:
            seen = {pid for pid, _ in pool.notes("ready")}
        return len(seen - victims), cpu_s / LOOP_S * 100


def _comm(process: psutil.Process) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process.pid}/comm").read_text().strip()
    return ""


def main() -> None:
    """Measure and print."""
    parser = arguments(str(__doc__), rounds=5)
    parser.add_argument("--limit", type=float, default=35.0, help="seconds to wait for a replacement (default: 35)")
    parser.add_argument("--only", action="append", choices=[*PEERS], help="measure only these")
    options = parser.parse_args()
    report = Report(
        f"Supervisors with {WORKERS} workers",
        ("", "killed, ms", "stopped, s", "blocked, s", "orphans, ms", "starts in 15 s", "its CPU, %"),
    )
    with server(options) as redis:
        report.measured_on(redis)
        for name in options.only or PEERS:
            if find_spec(PEERS[name].package) is None:
                say(f"{name} is not installed")
                continue
            row = (
                killed_ms(name, redis, options.rounds),
                stopped_s(name, redis, options.limit),
                blocked_s(name, redis, options.limit),
                orphans_ms(name, redis),
                *crash_loop(name, redis),
            )
            say(f"{name}: {row}")
            report.row(name, *(_cell(value) for value in row))
    report.notes.append(f"never: not within {options.limit:g} s, or the supervisor left; orphans: {ORPHANS_S:g} s.")
    report.show(as_json=options.json)


def _cell(value: float | None) -> object:
    if value is None:
        return "-"
    return "never" if value == float("inf") else value


if __name__ == "__main__":
    main()
