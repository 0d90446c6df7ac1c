"""Handler modules that start threads or open sockets when imported are refused, at the start and in a reload."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.errors import EXIT_HANDLERS
from tests.support.faults import Bounds
from tests.support.pool import Pool
from tests.support.recording import SIMPLE, seen
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
THREAD = """
    import threading
    threading.Thread(target=threading.Event().wait, daemon=True, name="metrics-sender").start()
"""
SOCKET = """
    import socket
    kept = socket.create_server(("127.0.0.1", 0))
"""


def check_refused(pool: Pool, word: str, code: str, redis: Any, bound: Bounds) -> None:
    """Check that a running pool keeps its code."""
    arbiter, before = pool.pid, pool.pids()
    good = (pool.folder / "handlers.py").read_text()
    (pool.folder / "handlers.py").write_text("\n".join(line[4:] for line in code.splitlines()) + good)
    with bound.within("SIGHUP until the new code is refused", 6000):
        pool.send(signal.SIGHUP)
        ended = eventually(lambda: pool.ask("status")["last_operation"], interval_s=0.005)
    assert ended["ok"] is False and word in ended["error"]
    assert pool.ask("status")["pid"] == arbiter and pool.pids() == before
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: pool.worker(0)["restarts"] == 1 and pool.wait_ready())
    redis.xadd("events", {"n": "after"})
    eventually(lambda: seen(pool)["after"] == 1)


@pytest.mark.parametrize("when", ["start", "restart"])
def test_57_thread_in_preload(start_pool: StartPool, redis_server: Any, bound: Bounds, when: str) -> None:
    if when == "restart":
        pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=1)
        check_refused(pool, "metrics-sender", THREAD, redis_server.sync(), bound)
    else:
        check_no_start(start_pool(THREAD + SIMPLE, redis_url=redis_server.url, ready=False), "metrics-sender", bound)


@pytest.mark.parametrize("when", ["start", "restart"])
def test_58_socket_open_in_preload(start_pool: StartPool, redis_server: Any, bound: Bounds, when: str) -> None:
    if when == "restart":
        pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=1)
        check_refused(pool, "a socket is open", SOCKET, redis_server.sync(), bound)
    else:
        check_no_start(start_pool(SOCKET + SIMPLE, redis_url=redis_server.url, ready=False), "a socket is open", bound)


def check_no_start(pool: Pool, word: str, bound: Bounds) -> None:
    """Check that the start is refused before any child is started."""
    began_s = time.monotonic()
    assert pool.wait() == EXIT_HANDLERS
    bound.check("start until it has left with 4", (time.monotonic() - began_s) * 1000, 3000)
    assert word in pool.output and "Traceback" not in pool.output
    assert not pool.events("worker started") and not pool.events("started")
