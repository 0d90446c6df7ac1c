"""Workers that live but do nothing: stopped, blocked, waiting forever, never READY."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.support.faults import Bounds, incarnations, ready_again_ms, shared_state_of
from tests.support.pool import Pool
from tests.support.recording import RECORD, SIMPLE, records, seen, times_ns
from tests.support.standins import Standins, is_gone
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]

#: `first()` is true for the first caller in any worker.
ONCE = (
    RECORD
    + """
    def first():
        try:
            os.close(os.open("first", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        record("hangs")
        return True
"""
)


def stack_of(pool: Pool, pid: int) -> str:
    """Return the stack dump of this worker from the log."""
    [line] = [line for line in pool.events("worker stack dump") if line["pid"] == pid]
    stack: str = line["stack"]
    return stack


def line_of(pool: Pool, text: str) -> str:
    """Return how a stack names the line of handlers.py that contains `text`."""
    lines = (pool.folder / "handlers.py").read_text().splitlines()
    [number] = [number for number, line in enumerate(lines, 1) if text in line]
    return f'handlers.py", line {number} in '


@pytest.mark.long
def test_06_sigstop_worker(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=2)  # with the default beat limit of 5 s
    shared, before = shared_state_of(pool.pid), pool.pids()
    was = incarnations(shared, [0])
    stopped_ns = time.monotonic_ns()
    os.kill(before[0], signal.SIGSTOP)
    eventually(lambda: psutil.Process(before[0]).status() == psutil.STATUS_STOPPED)
    redis = redis_server.sync()
    for n in range(100):
        redis.xadd("events", {"n": n})
    took_ms = ready_again_ms(shared, was, stopped_ns)[0]
    bound.check("SIGSTOP until another is READY", took_ms, 6000)
    assert is_gone(before[0])
    left = pool.worker(0)["last_exit"]
    assert (left["reason"], left["signal"]) == ("hung", signal.SIGKILL)
    # Messages that the server had already delivered to the stopped worker are handled, too.
    eventually(lambda: seen(pool) == {str(n): 1 for n in range(100)})
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert pool.pids()[1] == before[1] and pool.wait_ready()


def assert_blocked_is_replaced(pool: Pool, redis_server: Any, bound: Bounds, call: str) -> None:
    """The pool has a beat limit of 2 s, and its first message blocks a worker with `call`."""
    shared = shared_state_of(pool.pid)
    was = incarnations(shared, [0])
    before = pool.pids()[0]
    redis_server.sync().xadd("events", {"n": 1})
    [blocked_ns] = eventually(lambda: times_ns(pool, "hangs"))
    took_ms = ready_again_ms(shared, was, blocked_ns)[0]
    bound.check("blocked until another is READY, beat limit 2 s", took_ms, 3000)
    left = pool.worker(0)["last_exit"]
    assert (left["reason"], left["signal"]) == ("hung", signal.SIGKILL)
    assert line_of(pool, call) in stack_of(pool, before)
    eventually(lambda: seen(pool)["1"] == 1, what="the message ran again")
    eventually(lambda: redis_server.sync().xpending("events", "workers")["pending"] == 0)
    assert pool.wait_ready()["workers"][0]["restarts"] == 1


def test_07_loop_block_sleep(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(
        ONCE
        + """
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        if first():
            time.sleep(3600)
        record(message.fields["n"])
""",
        redis_url=redis_server.url,
        workers=1,
        config="[pool]\nbeat_limit_s = 2.0\n",
    )
    assert_blocked_is_replaced(pool, redis_server, bound, "time.sleep(3600)")


@pytest.mark.long
def test_08_loop_block_gil_regex(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # In a thread, but `re` holds the GIL: no other Python code runs in this process. The worker is kept for the
    # handler's time.
    pool = start_pool(
        ONCE
        + """
    import re
    @handler("events", group="workers", timeout_s=1)
    def handle(message: Message) -> None:
        if first():
            re.match("(a+)+$", "a" * 64 + "b")
        record(message.fields["n"])
""",
        redis_url=redis_server.url,
        workers=1,
        config="[pool]\nbeat_limit_s = 2.0\n",
    )
    assert_blocked_is_replaced(pool, redis_server, bound, "re.match(")


@pytest.mark.parametrize("death", ["cancelled", "raised"])
@pytest.mark.parametrize("victim", ["consumer other workers", "settler"], ids=["consumer", "settler"])
def test_09_consumer_task_dies_loop_alive(
    start_pool: StartPool, redis_server: Any, bound: Bounds, death: str, victim: str
) -> None:
    pool = start_pool(
        ONCE
        + f"""
    import asyncio
    def end(name):
        [task] = [task for task in asyncio.all_tasks() if task.get_name() == name]
        if {death == "cancelled"}:
            task.cancel()
        else:
            task._fut_waiter.set_exception(RuntimeError("a bug of its own"))
        record("ended")

    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        if first():
            end("{victim}")
        record("events")

    @handler("other", group="workers")
    async def other(message: Message) -> None:
        record("other")
""",
        redis_url=redis_server.url,
        workers=1,
    )
    shared = shared_state_of(pool.pid)
    was = incarnations(shared, [0])
    redis = redis_server.sync()
    redis.xadd("events", {"n": 1})
    [ended_ns] = eventually(lambda: times_ns(pool, "ended"))
    redis.xadd("other", {"n": 1})
    took_ms = ready_again_ms(shared, was, ended_ns)[0]
    word = {"cancelled": "is cancelled", "raised": "raises"}[death]
    bound.check(f"its task {word} until another worker is READY", took_ms, 300)
    assert pool.worker(0)["last_exit"]["reason"] == "exit"
    assert "a bug of its own" in pool.output if death == "raised" else f"{victim} was cancelled" in pool.output
    # A message runs twice if the worker exited between the handler and its ack.
    eventually(lambda: seen(pool)["other"] in (1, 2))
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert pool.wait_ready()


@pytest.mark.long
def test_10_await_forever(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # A handler that can be cancelled loses its attempt; one that can't costs the worker.
    pool = start_pool(
        ONCE
        + """
    import asyncio
    @handler("meek", group="workers", timeout_s=1, max_deliveries=2, retry_base_s=0.01)
    async def meek(message: Message) -> None:
        record("meek")
        await asyncio.Event().wait()

    @handler("defiant", group="workers", timeout_s=1)
    async def defiant(message: Message) -> None:
        hanging = first()
        while hanging:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                record("cancelled")
        record("defiant")
""",
        redis_url=redis_server.url,
        workers=1,
    )
    shared, before = shared_state_of(pool.pid), pool.pids()[0]
    was = incarnations(shared, [0])
    redis = redis_server.sync()
    redis.xadd("meek", {"n": 1})
    redis.xadd("defiant", {"n": 1})
    eventually(lambda: redis.xlen("supervisor:{meek}:workers:dead") == 1, 20)
    assert pool.pids()[0] == before, "a time limit alone kills no worker"
    assert seen(pool)["meek"] == 2
    [(_, letter)] = redis.xrange("supervisor:{meek}:workers:dead")
    assert b"timeout_s = 1" in letter[b"error"]
    hangs_ns = times_ns(pool, "hangs")[0]
    took_ms = ready_again_ms(shared, was, hangs_ns)[0]
    # 1 s limit, 5 s grace period, then at most two beats and a stack dump.
    bound.check("cancellation swallowed until another is READY, timeout 1 s", took_ms, 1000 + 5000 + 1500)
    assert seen(pool)["cancelled"] >= 1
    left = pool.worker(0)["last_exit"]
    assert (left["reason"], left["signal"]) == ("deadline", signal.SIGKILL)
    assert "Current thread" in stack_of(pool, before)
    eventually(lambda: seen(pool)["defiant"] == 1)
    assert {pid for pid, text, _ in records(pool) if text == "defiant"} != {before}
    assert pool.wait_ready()


def test_11_boot_hang(standins: Callable[..., Standins], bound: Bounds) -> None:
    pool = standins(workers=2, orders={"1": "boot_hang"}, pool="boot_limit_s = 1.5", ready=False)
    shared = eventually(lambda: shared_state_of(pool.pid))
    [hangs] = eventually(lambda: [note for note in pool.notes("spawned") if note["slot"] == 1])
    took_ms = ready_again_ms(shared, {1: 1}, int(hangs["at_s"] * 1e9))[1]
    bound.check("hangs at boot until another is READY, boot limit 1.5 s", took_ms, 2500)
    assert is_gone(hangs["pid"])
    left = eventually(lambda: pool.worker(1)["last_exit"])
    assert (left["reason"], left["signal"]) == ("boot", signal.SIGKILL)
    [line] = pool.events("worker stack dump")
    assert "Current thread" in line["stack"] and "before_boot_hang" in line["stack"]
    pool.wait_ready()
    assert pool.worker(0)["restarts"] == 0
