"""Handler modules that start threads or open sockets when imported: not forked with, at the start and in a reload.

With `preload = true` they are refused. With "auto" the workers import what starts threads or makes an event loop;
connections are refused.
"""

import functools
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import EXIT_HANDLERS
from tests.support.faults import Bounds
from tests.support.pool import Pool
from tests.support.recording import SIMPLE, seen
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]


@pytest.fixture
def start_pool(start_pool: StartPool) -> StartPool:
    """A pool of a new interpreter: what it imports and how it ends is the point here."""
    return functools.partial(start_pool, afresh=True)


THREAD = """
    import threading
    threading.Thread(target=threading.Event().wait, daemon=True, name="metrics-sender").start()
"""
PRELOAD = "[pool]\npreload = true"
#: As numpy's library does.
NATIVE_THREAD = """
    import ctypes
    libc = ctypes.CDLL(None)
    libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, libc.pause, None)
"""
EVENT_LOOP = """
    import asyncio
    loop = asyncio.new_event_loop()
"""
OTHER_LOOP = """
    import uvloop
    loop = uvloop.new_event_loop()
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


@pytest.mark.parametrize("when", ["start", pytest.param("restart", marks=pytest.mark.long)])
def test_57_thread_in_preload(start_pool: StartPool, redis_server: Any, bound: Bounds, when: str) -> None:
    if when == "restart":
        pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=1, config=PRELOAD)
        check_refused(pool, "metrics-sender", THREAD, redis_server.sync(), bound)
    else:
        pool = start_pool(THREAD + SIMPLE, redis_url=redis_server.url, ready=False, config=PRELOAD)
        check_no_start(pool, "metrics-sender", bound)


@pytest.mark.parametrize("when", ["start", pytest.param("restart", marks=pytest.mark.long)])
def test_58_socket_open_in_preload(start_pool: StartPool, redis_server: Any, bound: Bounds, when: str) -> None:
    if when == "restart":
        pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=1)
        check_refused(pool, "a socket is open", SOCKET, redis_server.sync(), bound)
    else:
        check_no_start(start_pool(SOCKET + SIMPLE, redis_url=redis_server.url, ready=False), "a socket is open", bound)


def test_a_refusal_needs_no_second_start(tmp_path: Path) -> None:
    (tmp_path / "handlers.py").write_text(textwrap.dedent(THREAD + SIMPLE))
    (tmp_path / "config.toml").write_text(PRELOAD)
    code = """
        from pathlib import Path
        from supervisor.arbiter import preload
        from supervisor.settings.load import load

        def begin_again():
            print("begins again")
            raise SystemExit

        try:
            preload.load(load(Path("config.toml")), begin_again=begin_again)
        except Exception as error:
            print(type(error).__name__, error)
    """
    command = [sys.executable, "-P", "-c", textwrap.dedent(code)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.startswith("HandlerError 2 threads") and "(metrics-sender)" in found.stdout


@pytest.mark.long
def test_a_start_that_is_refused_waits_for_no_thread_and_runs_exit_hooks(start_pool: StartPool) -> None:
    code = (
        THREAD.replace("daemon=True, ", "")
        + """
    import atexit
    atexit.register(print, "a hook has run")
"""
    )
    pool = start_pool(code + SIMPLE, ready=False, config=PRELOAD)
    assert pool.wait() == EXIT_HANDLERS
    assert pool.output.count("a hook has run") == 1


def write_library(tmp_path: Path, code: str) -> None:
    """Write a module that the handlers of the first pool import."""
    folder = tmp_path / "project0"
    folder.mkdir()
    (folder / "library.py").write_text(textwrap.dedent(code))


def check_no_start(pool: Pool, word: str, bound: Bounds) -> None:
    """Check that the start is refused before any child is started."""
    began_s = time.monotonic()
    assert pool.wait() == EXIT_HANDLERS
    bound.check("start until it has left with 4", (time.monotonic() - began_s) * 1000, 3000)
    assert word in pool.output and "Traceback" not in pool.output
    assert not pool.events("worker started") and not pool.events("started")


@pytest.mark.parametrize(
    "code",
    [NATIVE_THREAD, *(pytest.param(code, marks=pytest.mark.long) for code in (THREAD, EVENT_LOOP, OTHER_LOOP))],
    ids=["native", "thread", "loop", "uv"],
)
def test_workers_import_what_no_fork_can_share(
    start_pool: StartPool, redis_server: Any, tmp_path: Path, code: str
) -> None:
    write_library(tmp_path, code)
    pool = start_pool("    import library\n" + SIMPLE, redis_url=redis_server.url, ready=False)
    pool.wait_ready()
    (warned,) = pool.events("handlers imported in workers")
    assert "library" in warned["reason"] and "each worker takes" in warned["cost"]
    redis_server.sync().xadd("events", {"n": "1"})
    eventually(lambda: seen(pool)["1"] == 1)
    pool.kill_worker(0)
    eventually(lambda: pool.worker(0)["restarts"] == 1 and pool.wait_ready())
    for command in (("config", "check"), ("doctor",)):
        done = pool.command(*command)
        assert warned["reason"] in done.stdout + done.stderr
    pool.send(signal.SIGHUP)
    eventually(lambda: (pool.ask("status")["last_operation"] or {}).get("ok"), 30)
    assert len(pool.events("handlers imported in workers")) == 2


def test_a_connection_is_named_by_module_and_peer(start_pool: StartPool, redis_server: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        write_library(tmp_path, f"import socket\nkept = socket.create_connection(('127.0.0.1', {port}))\n")
        pool = start_pool("    import library\n" + SIMPLE, redis_url=redis_server.url, ready=False)
        assert pool.wait() == EXIT_HANDLERS
        for text in (pool.output, pool.command("config", "check").stderr, pool.command("doctor").stdout):
            assert f"connected to 127.0.0.1:{port}" in text
            assert "library" in text and "@worker_lifespan" in text


def test_preload_can_be_switched_off(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(SIMPLE, redis_url=redis_server.url, config="[pool]\npreload = false")
    redis_server.sync().xadd("events", {"n": "1"})
    eventually(lambda: seen(pool)["1"] == 1)
    assert not pool.events("handlers imported in workers")
