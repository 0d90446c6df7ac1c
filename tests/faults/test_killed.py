"""Workers that die: killed, crashed in C, or gone without being asked."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from tests.support.faults import Bounds, board_of, incarnations, ready_again_ms
from tests.support.pool import Pool

StartPool = Callable[..., Pool]

#: Each delivery is a line in a file of the worker's own, written in one call: it survives the worker.
RECORD = """
    import os, time
    from supervisor import Message, handler

    def record(text):
        fd = os.open(f"seen.{os.getpid()}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(fd, f"{text} {time.monotonic_ns()}\\n".encode())
        os.close(fd)
"""

SIMPLE = (
    RECORD
    + """
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        record(message.fields["n"])
"""
)


def test_01_kill9_one(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # Each slot is killed once: what is measured is the restart, not the backoff of one that crashes again.
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=10)
    board, before = board_of(pool.pid), pool.pids()
    times = []
    for slot, pid in before.items():
        was = incarnations(board, [slot])
        killed_ns = time.monotonic_ns()
        os.kill(pid, signal.SIGKILL)
        times += ready_again_ms(board, was, killed_ns).values()
    bound.check("kill -9 of one until READY", times, 100)
    after = pool.wait_ready()["workers"]
    assert all(worker["last_exit"]["signal"] == signal.SIGKILL for worker in after)
    assert all(worker["pid"] != before[worker["slot"]] and worker["restarts"] == 1 for worker in after)


def test_02_kill9_all(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    times = []
    for _ in range(3):  # three pools: the second time, a slot would wait for its backoff
        pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=8, config=f'[pool]\nname = "p{len(times)}"\n')
        board, before = board_of(pool.pid), pool.pids()
        was = incarnations(board, list(before))
        killed_ns = time.monotonic_ns()
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        times.append(max(ready_again_ms(board, was, killed_ns).values()))
        after = pool.wait_ready()["workers"]
        assert [worker["last_exit"]["signal"] for worker in after] == [signal.SIGKILL] * 8
        assert not set(before.values()) & {worker["pid"] for worker in after}
        pool.stop()
    bound.check("kill -9 of all 8 until all are READY", times, 300)
