"""One pool per state directory and per name; files left after a power loss prevent no start."""

import contextlib
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from redis import Redis

from supervisor.errors import EXIT_RUNNING
from supervisor.keeper.lease import RENEW_S
from tests.support.faults import Bounds, Watch
from tests.support.pool import Pool, kill_all
from tests.support.recording import HOLDING, SIMPLE, seen
from tests.support.standins import Standins
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]


@pytest.mark.long
def test_45_second_supervisor_same_name(
    standins: Callable[..., Standins], start_pool: StartPool, redis_server: Any, bound: Bounds
) -> None:
    # Four starts with one state directory at once: one succeeds, and the others name it.
    first = standins(workers=1, ready=False)
    with contextlib.ExitStack() as ended:
        more = [ended.enter_context(first.rival().start(ready=False)) for _ in range(3)]
        rivals = [rival for rival in (first, *more) if rival.process]
        with bound.within("four starts at once until three were refused", 5000):
            eventually(lambda: sum(rival.process.poll() is not None for rival in rivals) == 3, 30)
        assert Counter(rival.process.poll() for rival in rivals) == {None: 1, EXIT_RUNNING: 3}
        [winner] = [rival for rival in rivals if rival.process.poll() is None]
        assert winner.wait_ready()["pid"] == winner.pid and winner.err.count("already runs") == 3
        assert winner.stop() == 0
    # In another directory, but with the same name on the same Redis.
    running = start_pool(SIMPLE, redis_url=redis_server.url, workers=1)
    before = running.pids()
    with bound.within("a second pool of the same name until it has left", RENEW_S * 1000 + 3000):
        second = start_pool(SIMPLE, redis_url=redis_server.url, workers=1, ready=False)
        assert second.wait() == EXIT_RUNNING
    assert "[pool] name" in second.output and "Traceback" not in second.output
    running.wait_ready()
    assert running.pids() == before and not running.events("pool name taken")
    start_pool(SIMPLE, redis_url=redis_server.url, workers=1, config='[pool]\nname = "second"\n')
    assert len(redis_server.sync().keys("supervisor:host:*")) == 2


def power_loss(pool: Pool) -> None:
    """Kill all processes at once."""
    processes = pool.processes()
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    kill_all(processes)
    pool.wait()
    psutil.wait_procs(processes, 5)


@pytest.mark.long
def test_46_stale_lock_after_power_loss(start_pool: StartPool, watch: Watch, bound: Bounds) -> None:
    pool = start_pool(
        HOLDING,
        workers=2,
    )
    redis = Redis(unix_socket_path=str(pool.paths.redis_socket))
    for n in range(5):
        redis.xadd("events", {"n": n})
    eventually(lambda: len(seen(pool)) == 5)
    power_loss(pool)
    (pool.folder / "go").touch()
    place = pool.paths
    assert place.control.exists() and place.lock.exists() and place.redis_socket.exists()
    # The pids in the files belong to other processes by now, and the newest file is incomplete.
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as other:
        for path in (place.lock, place.redis_dir / "lock"):
            assert path.read_text().isdigit()
            path.write_text(str(other.pid))
        place.exit_report.write_text('{"pid": ')
        place.token.with_suffix(".new").write_text("")
        [log] = place.redis_dir.glob("appendonlydir/*.incr.aof")
        with log.open("ab") as file:
            file.write(b"*3\r\n$3\r\nSE")
        with bound.within("start after the power loss until READY", 5000):
            pool.start()
        watch.measure(pool)
        eventually(lambda: seen(pool)["done"] == 5, what="what was in hand has run again")
        assert place.lock.read_text() == str(pool.pid) and other.poll() is None
        eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
        other.kill()
    assert pool.wait_ready()["state"] == "healthy"
    assert os.stat(place.control).st_mode & 0o777 == 0o600
