"""No free process or descriptor: the arbiter waits without using CPU and then continues."""

import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.support.faults import Bounds
from tests.support.pids_group import PidsGroup, pids_group
from tests.support.standins import Standins, now_s
from tests.support.waiting import eventually

Make = Callable[..., Standins]
LACK_S = 2.0


@pytest.fixture
def cgroup() -> Iterator[PidsGroup]:
    with pids_group() as made:
        yield made


def lack(pool: Standins, until_s: float) -> float:
    """Let the shortage last; return the CPU that the arbiter used per second."""
    arbiter = psutil.Process(pool.pid)
    began_s, before = now_s(), sum(arbiter.cpu_times()[:2])
    eventually(lambda: now_s() >= until_s, LACK_S + 5, 0.05)
    return (sum(arbiter.cpu_times()[:2]) - before) / (now_s() - began_s)


@pytest.mark.long
def test_36_fork_eagain(cgroup: PidsGroup, standins: Make, bound: Bounds) -> None:
    pool = standins(workers=3)
    before = pool.pids()
    cgroup.take(pool.pid)
    cgroup.limit(1)
    os.kill(before[0], signal.SIGKILL)
    until_s = now_s() + LACK_S
    waiting = eventually(lambda: pool.worker(0)["state"] == "BACKOFF" and pool.worker(0))
    assert waiting["last_exit"]["reason"] == "fork" and waiting["pid"] is None
    assert pool.status()["state"] == "degraded"
    # A restart needs a process too; it fails and changes nothing.
    pool.send(signal.SIGHUP)
    eventually(lambda: (pool.status()["last_operation"] or {}).get("ok") is False)
    bound.check("CPU of the arbiter while it can't fork", lack(pool, until_s), 0.2, "s/s")
    refused = [line["error"] for line in pool.events("worker start failed")]
    assert cgroup.refused() and all("temporarily unavailable" in error for error in refused)
    bound.check(f"tries to fork in {LACK_S:.0f} s", len(refused), 7, "")
    assert {slot: pid for slot, pid in pool.pids().items() if slot} == {1: before[1], 2: before[2]}
    cgroup.limit(None)
    with bound.within("processes again until all are READY", 5000):
        pool.wait_ready()
    assert [worker["restarts"] for worker in pool.status()["workers"]] == [1, 0, 0]


@pytest.mark.long
def test_37_emfile(standins: Make, bound: Bounds) -> None:
    pool = standins(workers=2)
    before = pool.pids()
    soft, hard = resource.prlimit(pool.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, (3, hard))
    until_s = now_s() + LACK_S
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(pool.paths.control))
        client.sendall(b'{"cmd": "ping"}\n')
        os.kill(before[0], signal.SIGKILL)
        bound.check("CPU of the arbiter while it can open nothing", lack(pool, until_s), 0.2, "s/s")
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        # New workers have no descriptors either: they fail one after the other, less and less often.
        left = pool.events("worker exited")
        assert {line["slot"] for line in left} == {0} and {line["code"] for line in left[1:]} == {1}
        bound.check(f"tries to start in {LACK_S:.0f} s", len(left), 8, "")
        resource.prlimit(pool.pid, resource.RLIMIT_NOFILE, (soft, hard))
        client.settimeout(30)
        with bound.within("descriptors again until who waited is answered", 1500):
            assert client.recv(100) == b'{"ok":true,"data":{}}\n'
    with bound.within("descriptors again until all are READY", 5000):
        pool.wait_ready()
    assert pool.pids()[1] == before[1]
    os.kill(before[1], signal.SIGKILL)  # all is as before: no backoff for this one
    with bound.within("kill -9 of another until all are READY", 1000):
        eventually(lambda: pool.worker(1)["restarts"] == 1 and pool.wait_ready())
