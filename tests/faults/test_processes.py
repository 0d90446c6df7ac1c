"""Confusing processes: reused pids, surviving grandchildren, exit statuses taken by others."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from supervisor.errors import EXIT_OK
from tests.support.faults import Bounds, Watch, incarnations, ready_again_ms, shared_state_of, zombies
from tests.support.pool import MARK, Pool, clean_environment
from tests.support.recording import RECORD, SIMPLE, records, seen
from tests.support.standins import ROOT, Standins, is_gone, now_s
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
Make = Callable[..., Standins]
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@contextlib.contextmanager
def stranger(pid: int, tries: int = 300) -> Iterator[subprocess.Popen[bytes] | None]:
    """Start a process with this pid, process group and session; None if that is not possible."""
    for _ in range(tries):  # others on this machine make processes too
        LAST_PID.write_text(str(pid - 1))
        made = subprocess.Popen(["sleep", "600"], start_new_session=True)
        if made.pid == pid:
            break
        made.kill()
        made.wait()
    else:
        yield None
        return
    try:
        yield made
    finally:
        made.kill()
        made.wait()


@pytest.mark.skipif(not os.access(LAST_PID, os.W_OK), reason="no pid can be chosen here")
@pytest.mark.long
def test_47_pid_reuse(standins: Make, bound: Bounds) -> None:
    pool = standins(workers=3)
    before = pool.pids()
    # Until the arbiter has reaped the worker, its pid can't be reused.
    pool.send(signal.SIGSTOP)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: zombies(pool.pid) == [before[0]])
    with stranger(before[0], tries=20) as found:
        assert found is None
    pool.send(signal.SIGCONT)
    eventually(lambda: pool.worker(0)["restarts"] == 1 and pool.wait_ready())
    # After that it may be, and the arbiter never signals that pid again.
    with stranger(before[0]) as found:
        assert found is not None and os.getpgid(found.pid) == before[0]
        os.kill(pool.pids()[0], signal.SIGKILL)
        eventually(lambda: pool.worker(0)["restarts"] == 2 and pool.wait_ready())
        pool.send(signal.SIGHUP)
        eventually(lambda: (pool.status()["last_operation"] or {}).get("ok"), 20)
        pool.ask("scale", n=1)
        eventually(lambda: sorted(pool.pids()) == [0])
        with bound.within("a quick stop beside a process that has a dead worker's pid", 2000):
            pool.send(signal.SIGQUIT)
            assert pool.wait() == EXIT_OK
        assert found.poll() is None, "the other process lives"


def test_48_grandchild_outlives_worker(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(
        RECORD
        + """
    import subprocess
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        stays = subprocess.Popen(["sleep", "600"])
        leaves = subprocess.Popen(["sleep", "600"], start_new_session=True)
        record(f"{stays.pid}.{leaves.pid}")
""",
        redis_url=redis_server.url,
        workers=1,
    )
    redis, times = redis_server.sync(), []
    for cycle in range(3):
        worker = pool.pids()[0]
        redis.xadd("events", {"n": cycle})
        eventually(lambda cycle=cycle: len(seen(pool)) == cycle + 1)
        eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)  # so that it does not run again
        stays, leaves = map(int, records(pool)[-1][1].split("."))
        assert psutil.Process(stays).ppid() == psutil.Process(leaves).ppid() == worker
        killed_s = now_s()
        os.kill(worker, signal.SIGKILL)
        eventually(lambda stays=stays: is_gone(stays), interval_s=0.001)
        times.append((now_s() - killed_s) * 1000)
        # A grandchild with a session of its own becomes the arbiter's child and is reaped when it exits.
        assert psutil.Process(leaves).ppid() == pool.pid
        os.kill(leaves, signal.SIGKILL)
        eventually(lambda stays=stays, leaves=leaves: not any(map(psutil.pid_exists, (stays, leaves))))
        eventually(lambda cycle=cycle: pool.worker(0)["restarts"] == cycle + 1 and pool.worker(0)["state"] == "READY")
    bound.check("kill -9 of a worker until its child is gone", times, 100)
    assert pool.wait_ready()["services"][0]["restarts"] == 0


class PidOne(Standins):
    """An arbiter that is pid 1 of its own namespace, as in a container."""

    def start(self, *, ready: bool = True) -> Self:
        more = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        with (self.folder / "err").open("ab") as err:
            self.process = subprocess.Popen(
                ["unshare", *more, "--pid", "--fork", "--kill-child", "--mount-proc",
                 sys.executable, "-m", "tests.support.standin_main", str(self.config), *self.args],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=err, stderr=err, start_new_session=True,
                env=clean_environment() | {MARK: self._mark},
            )  # fmt: skip
        if ready:
            self.wait_ready()
        return self

    @property
    def pid(self) -> int:
        """Return its pid outside of the namespace."""
        assert self.process is not None
        [arbiter] = psutil.Process(self.process.pid).children()
        return arbiter.pid

    def run(self, command: str) -> None:
        """Run a command in its namespace that is not a child of the arbiter."""
        subprocess.run(["nsenter", "-t", str(self.pid), "-p", "-m", "sh", "-c", command], check=True, timeout=20)


@pytest.fixture
def pid_one(tmp_path: Path, watch: Watch) -> Iterator[PidOne]:
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(["unshare", "-pf", "--mount-proc", "true"], capture_output=True, check=False).returncode == 0:
            with PidOne(tmp_path / "p", workers=3).start() as pool:
                watch.add(pool)
                watch.measure(pool)
                yield pool
                watch.assert_flat()
            return
    pytest.skip("no pid namespace can be made here")


def test_49_grandchild_double_fork_as_pid1(pid_one: PidOne, bound: Bounds) -> None:
    pool, arbiter = pid_one, pid_one.pid
    assert pool.status()["pid"] == 1
    # Fifty processes whose parents exit at once: they become children of pid 1 and end there.
    pool.run("for n in $(seq 50); do (setsid sleep 600 &); done")

    def sleeping() -> list[int]:
        return [child.pid for child in psutil.Process(arbiter).children() if child.name() == "sleep"]

    orphans = eventually(lambda: found if len(found := sleeping()) == 50 else [])
    children = {child.pid: child.name() for child in psutil.Process(arbiter).children()}
    # Workers die among them: no exit status is mistaken for another's.
    workers = [pid for pid, name in children.items() if name in ("worker 0", "worker 2")]
    with bound.within("50 orphans and 2 workers are killed until all are reaped", 1000):
        for pid in [*orphans[:25], *workers, *orphans[25:]]:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not any(map(psutil.pid_exists, orphans + workers)), interval_s=0.002)
    eventually(lambda: [worker["restarts"] for worker in pool.wait_ready()["workers"]] == [1, 0, 1])
    assert [line["signal"] for line in pool.events("worker exited")] == ["SIGKILL"] * 2
    assert not zombies(arbiter)
    with bound.within("SIGTERM to pid 1 until it has left", 2000):
        pool.send(signal.SIGTERM)
        assert pool.wait() == EXIT_OK
    assert not pool.processes()


def test_50_worker_stolen_wait(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # A library that waits for any child takes exit statuses that the worker's loop waits for.
    pool = start_pool(
        RECORD
        + """
    import asyncio
    @handler("thief", group="workers", timeout_s=60)
    def steal(message: Message) -> None:
        while not os.path.exists("enough"):
            try:
                record(f"stolen.{os.waitpid(-1, 0)[0]}")
            except ChildProcessError:
                time.sleep(0.001)

    @handler("events", group="workers", timeout_s=1, retry_base_s=0.1, retry_max_s=0.2, max_deliveries=50)
    async def handle(message: Message) -> None:
        child = await asyncio.create_subprocess_exec("sleep", "0.05")
        record(f"started.{child.pid}")
        await child.wait()
        record(message.fields["n"])

    @handler("others", group="workers")
    async def other(message: Message) -> None:
        record("other")
""",
        redis_url=redis_server.url,
        workers=1,
    )
    redis, before = redis_server.sync(), pool.pids()
    redis.xadd("thief", {"n": 1})
    for n in range(10):
        redis.xadd("events", {"n": n})
    eventually(lambda: any(text.startswith("stolen.") for text in seen(pool)))
    redis.xadd("others", {"n": 1})
    with bound.within("another handler's message meanwhile", 1000):
        eventually(lambda: seen(pool)["other"] == 1)
    (pool.folder / "enough").touch()
    eventually(lambda: {str(n) for n in range(10)} <= set(seen(pool)), 20, what="each was run until nothing interfered")
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert pool.pids() == before and not pool.events("worker exited")
    assert not zombies(before[0])


def test_50_arbiter_stolen_wait(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # The same in the arbiter itself, by a hook that a module registered for each fork.
    pool = start_pool(
        """
    import os
    def steal():
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                with open("stolen", "a") as file:
                    file.write(f"{found[0]} ")
        except ChildProcessError:
            pass
    os.register_at_fork(after_in_parent=steal)
"""
        + SIMPLE,
        redis_url=redis_server.url,
        workers=4,
    )
    before = pool.pids()
    shared = shared_state_of(pool.pid)
    was = incarnations(shared, list(before))
    pool.send(signal.SIGSTOP)  # so that all have died when it forks the first successor
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: len(zombies(pool.pid)) == 4)
    continued_ns = int(now_s() * 1e9)
    pool.send(signal.SIGCONT)
    times = ready_again_ms(shared, was, continued_ns)
    bound.check("three of four statuses stolen until all are READY", max(times.values()), 1000)
    stolen = {int(pid) for pid in (pool.folder / "stolen").read_text().split()}
    assert len(stolen & set(before.values())) == 3
    assert [worker["restarts"] for worker in pool.wait_ready()["workers"]] == [1] * 4
    redis_server.sync().xadd("events", {"n": "1"})
    eventually(lambda: seen(pool)["1"] == 1)
    assert not pool.events("internal error")
