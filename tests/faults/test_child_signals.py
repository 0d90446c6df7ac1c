"""Signals that reach other processes than intended: a terminal's whole group, or a child instead of the arbiter."""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

from supervisor.errors import EXIT_OK
from tests.support.faults import Bounds
from tests.support.pool import Pool
from tests.support.recording import RECORD, SIMPLE, seen
from tests.support.standins import is_gone
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
ROUNDS = 2
#: Signals that the arbiter itself handles.
NEWS = ("draining", "quick stop", "restarted", "restart failed", "restart refused", "scaled", "scale refused", "status")


def news(pool: Pool) -> list[str]:
    """Return the log events of commands to the arbiter."""
    return [line["event"] for name in NEWS for line in pool.events(name)]


def test_31_ctrl_c_process_group(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(
        RECORD
        + """
    import asyncio
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        record("begun")
        await asyncio.sleep(0.5)
        record("done")
""",
        redis_url=redis_server.url,
        workers=4,
        api=True,
    )
    for n in range(40):
        redis_server.sync().xadd("events", {"n": n})
    eventually(lambda: seen(pool)["begun"] == 40)
    # Signal the arbiter's group, as a terminal does, and each child, as if it had stayed in that group.
    others = [process.pid for process in pool.processes() if process.pid != pool.pid]
    assert len(others) == 6 and all(os.getpgid(pid) == pid for pid in others)
    with bound.within("Ctrl-C for all until it has left, half a second of work in hand", 2500):
        os.killpg(pool.pid, signal.SIGINT)
        for pid in others:
            with contextlib.suppress(ProcessLookupError):  # the arbiter's own may have been quicker
                os.kill(pid, signal.SIGINT)
        assert pool.wait() == EXIT_OK
    assert seen(pool) == {"begun": 40, "done": 40}
    assert redis_server.sync().xpending("events", "workers")["pending"] == 0
    assert news(pool) == ["draining"] and "Traceback" not in pool.output
    assert {line["reason"] for line in pool.events("worker exited")} == {"drained"}


def test_59_python311_signal_leak(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # The children's loops handle the same signals as the arbiter; CPython 3.11 could mix them up.
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=6, config="[pool]\nbeat_limit_s = 2.0\n")
    arbiter, before = pool.pid, pool.pids()
    keeper = pool.ask("status")["services"][0]
    numbers = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGQUIT", "SIGTSTP", "SIGTTOU")
    for slot, name in enumerate(numbers):
        os.kill(before[slot], getattr(signal, name))
    with bound.within("5 of 6 workers lose to 6 signals until all are READY again", 6000):
        eventually(
            lambda: all(is_gone(before[slot]) for slot in range(5)), 20, what="one was stopped, and killed for it"
        )
        pool.wait_ready()
    ends = {line["slot"]: (line.get("signal"), line["reason"]) for line in pool.events("worker exited")}
    assert [ends[slot][0] for slot in range(5)] == [None, "SIGHUP", "SIGUSR1", "SIGQUIT", "SIGKILL"]
    assert pool.pids()[5] == before[5], "SIGTTOU is ignored"
    # Repeat the most common signal: SIGTERM to a loop that handles it.
    for count in range(1, ROUNDS + 1):
        pids = [pool.pids()[0], pool.pids()[1], pool.ask("status")["services"][0]["pid"]]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        eventually(lambda pids=pids: all(map(is_gone, pids)), 20)
        eventually(lambda count=count: [pool.worker(slot)["restarts"] for slot in (0, 1)] == [1 + count] * 2)
        pool.wait_ready()
    status = pool.ask("status")
    assert status["pid"] == arbiter and len(status["workers"]) == 6 and news(pool) == []
    assert status["services"][0]["restarts"] == keeper["restarts"] + ROUNDS
    # The arbiter still gets its own signals.
    pool.send(signal.SIGUSR1)
    eventually(lambda: news(pool) == ["status"])
