"""Handlers that can't be imported: at the first start, and when a running pool reloads them."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.errors import EXIT_HANDLERS
from tests.support.faults import Bounds
from tests.support.pool import Pool
from tests.support.recording import SIMPLE, seen
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]


def test_12_import_error_first_boot(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    with bound.within("start until it has left with 4", 1000):
        pool = start_pool("import nothing_of_this_name\n", redis_url=redis_server.url, ready=False)
        assert pool.wait() == EXIT_HANDLERS
    assert "handlers.py:1" in pool.output and "nothing_of_this_name" in pool.output
    assert "Traceback" not in pool.output
    assert not pool.events("worker started")


@pytest.mark.long
def test_13_import_error_after_reload(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=2)
    redis = redis_server.sync()
    arbiter, before = pool.pid, pool.pids()
    code = (pool.folder / "handlers.py").read_text()
    (pool.folder / "handlers.py").write_text("import nothing_of_this_name\n")
    with bound.within("SIGHUP until the bad code is refused", 2000):
        pool.send(signal.SIGHUP)
        refused = eventually(lambda: pool.events("restart failed"), interval_s=0.005)
    assert "nothing_of_this_name" in refused[0]["error"] or "nothing_of_this_name" in pool.output
    status = pool.ask("status")
    assert status["pid"] == arbiter and status["last_operation"]["ok"] is False
    assert pool.pids() == before and not pool.events("worker exited")
    redis.xadd("events", {"n": "old"})
    eventually(lambda: seen(pool)["old"] == 1, what="the old code goes on")
    # Once fixed, the code is loaded.
    (pool.folder / "handlers.py").write_text(code.replace('record(message.fields["n"])', 'record("new")'))
    pool.send(signal.SIGHUP)
    eventually(lambda: (pool.ask("status")["last_operation"] or {}).get("ok"), 20)
    redis.xadd("events", {"n": "old"})
    eventually(lambda: seen(pool)["new"] == 1)
    assert pool.wait_ready()["pid"] == arbiter
    assert not set(before.values()) & set(pool.pids().values())
