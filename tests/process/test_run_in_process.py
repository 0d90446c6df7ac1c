"""Handlers with `run_in = "process"`, and plain handlers that hold Python's lock."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor.errors import EXIT_OK
from supervisor.keys import dead_key
from tests.cli.test_surroundings import refuse
from tests.support.pool import Pool
from tests.support.recording import RECORD, records, seen
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
COMPUTES = (
    RECORD
    + """
    import ctypes, signal
    from pydantic import BaseModel
    from supervisor import Reject, context

    class Job(BaseModel):
        n: int

    @handler("events", group="workers", run_in="process", max_tasks=2, timeout_s=OPTION, retry_base_s=0.01)
    def handle(job: Job, message: Message) -> None:
        record(f"{job.n}/{message.deliveries}")
        if job.n == 10:
            raise Reject("no tens")
        if job.n == 11 and message.deliveries == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.n == 12 and message.deliveries == 1:
            ctypes.PyDLL(None).sleep(600)
        assert context().worker
"""
)


def test_it_runs_in_processes_that_are_replaced(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(COMPUTES.replace("OPTION", "60"), redis_url=redis_server.url, workers=1)
    redis = redis_server.sync()
    for n in range(4):
        redis.xadd("events", {"n": n})
    eventually(lambda: all(seen(pool)[f"{n}/1"] == 1 for n in range(4)))
    pids = {pid for pid, _, _ in records(pool)}
    assert len(pids) == 2 and pool.pids()[0] not in pids
    redis.xadd("events", {"n": "x"})
    redis.xadd("events", {"n": 10})
    letters = eventually(lambda: (found := redis.xrange(dead_key("events", "workers"))) and len(found) == 2 and found)
    reasons = sorted(fields[b"reason"].decode() for _, fields in letters)
    assert "does not fit Job" in reasons[1] and "no tens" in reasons[0]
    eventually(lambda: pool.worker(0)["in_flight"] == 0)
    assert pool.stop() == EXIT_OK


EMITS = """
    from pydantic import BaseModel
    from supervisor import Emit, handler

    class Job(BaseModel):
        n: int

    @handler("events", group="workers", run_in="process")
    def one(job: Job) -> Emit:
        return Emit("squares", {"n": job.n**2})

    @handler("events", group="batches", run_in="process")
    def batch(jobs: list[Job]) -> list[Emit]:
        return [Emit("cubes", {"n": job.n**3}) for job in jobs]
"""


def test_what_it_returns_as_emit_is_published(start_pool: StartPool, redis_server: Any) -> None:
    redis = redis_server.sync()
    for n in (1, "x", 2, 3):
        redis.xadd("events", {"n": n})
    pool = start_pool(EMITS, redis_url=redis_server.url, workers=1)
    eventually(lambda: redis.xlen("squares") == redis.xlen("cubes") == 3)
    assert sorted(int(fields[b"n"]) for _, fields in redis.xrange("cubes")) == [1, 8, 27]
    eventually(lambda: redis.xlen(dead_key("events", "workers")) == redis.xlen(dead_key("events", "batches")) == 1)
    assert pool.stop() == EXIT_OK


def errors(pool: Pool, *words: str) -> set[str]:
    """Return those of the words that the log has as the error of a handler."""
    found = " ".join(line["error"] for line in pool.events("handler failed"))
    return {word for word in words if word in found}


def test_a_process_that_dies_or_takes_too_long_costs_its_message_one_attempt(
    start_pool: StartPool, redis_server: Any
) -> None:
    pool = start_pool(COMPUTES.replace("OPTION", "1"), redis_url=redis_server.url, workers=1)
    redis = redis_server.sync()
    for n in (11, 12, 13):
        redis.xadd("events", {"n": n})
    eventually(lambda: seen(pool)["11/2"] and seen(pool)["12/2"] and seen(pool)["13/1"])
    eventually(lambda: {"SIGKILL", "timeout_s = 1"} <= errors(pool, "SIGKILL", "timeout_s = 1"))
    assert pool.worker(0)["restarts"] == 0
    children = psutil.Process(pool.pids()[0]).children(recursive=True)
    pool.kill_worker(0, signal.SIGKILL)
    eventually(lambda: not any(child.is_running() for child in children), what="the processes end with their worker")


RETURNS = """
    import threading
    from supervisor import Message, handler

    @handler("events", group="workers", run_in="process")
    def handle(message: Message) -> object:
        return {"lock": threading.Lock(), "large": bytes(1 << 28), "function": lambda: None}[message.fields["n"]]
"""


def test_what_it_returns_otherwise_is_ignored(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(RETURNS, redis_url=redis_server.url, workers=1)
    redis = redis_server.sync()
    for n in ("lock", "function", "large"):
        redis.xadd("events", {"n": n})
    eventually(lambda: pool.worker(0)["done"] == 3)
    assert psutil.Process(pool.pids()[0]).memory_info().rss < 1 << 28


def test_a_worker_whose_server_of_processes_is_killed_is_replaced(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(COMPUTES.replace("OPTION", "60"), redis_url=redis_server.url, workers=1)
    redis = redis_server.sync()
    redis.xadd("events", {"n": 1})
    eventually(lambda: seen(pool)["1/1"])
    (server,) = psutil.Process(pool.pids()[0]).children()
    server.kill()
    redis.xadd("events", {"n": 2})
    redis.xadd("events", {"n": 3})
    eventually(lambda: pool.worker(0)["restarts"] == 1 and all(seen(pool)[f"{n}/1"] for n in (2, 3)))
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    assert "the process that forks the handlers' processes has ended" in pool.output


def test_a_long_error_ends_no_worker(start_pool: StartPool, redis_server: Any) -> None:
    handlers = """
    from supervisor import Message, handler
    @handler("events", group="workers", run_in="process", max_deliveries=1)
    def handle(message: Message) -> None:
        raise ValueError("begins" + "x" * 30_000_000 + "ends")
    """
    pool = start_pool(handlers, redis_url=redis_server.url, workers=1)
    redis = redis_server.sync()
    redis.xadd("events", {"n": 1})
    ((_, letter),) = eventually(lambda: redis.xrange(dead_key("events", "workers")), 20)
    assert letter[b"reason"].startswith(b"failed once, with ValueError: begins") and letter[b"reason"].endswith(b"ends")
    assert len(letter[b"reason"]) + len(letter[b"error"]) < 50_000
    assert pool.worker(0)["restarts"] == 0
    assert len(pool.output) < 200_000


def test_it_needs_no_pidfd(tmp_path: Path, start_pool: StartPool, redis_server: Any) -> None:
    """Some sandboxes and systems have none."""
    env = refuse(tmp_path / "site", os__pidfd_open="EPERM")
    pool = start_pool(COMPUTES.replace("OPTION", "60"), redis_url=redis_server.url, workers=1, env=env)
    redis = redis_server.sync()
    for n in (1, 11):
        redis.xadd("events", {"n": n})
    eventually(lambda: seen(pool)["1/1"] and seen(pool)["11/2"])
    eventually(lambda: errors(pool, "SIGKILL"))
    assert pool.worker(0)["restarts"] == 0


STARVING = (
    RECORD
    + """
    import ctypes
    @handler("events", group="workers")
    def handle(message: Message) -> None:
        record("began")
        ctypes.PyDLL(None).usleep(3_500_000)  # holds Python's lock
        record("done")
"""
)
BLOCKING = (
    RECORD
    + """
    @handler("events", group="workers")
    def compute(message: Message) -> None:
        record("began")
        ends = time.monotonic() + 30
        while time.monotonic() < ends: pass

    @handler("other", group="workers")
    async def block(message: Message) -> None:
        time.sleep(30)
"""
)


@pytest.mark.long
def test_a_worker_that_a_thread_starves_is_kept_and_named(start_pool: StartPool, redis_server: Any) -> None:
    config = "[pool]\nbeat_limit_s = 1.0"
    pool = start_pool(STARVING, redis_url=redis_server.url, workers=1, config=config)
    redis_server.sync().xadd("events", {"n": "1"})
    eventually(lambda: seen(pool)["done"])
    eventually(lambda: pool.worker(0)["done"] == 1)
    time.sleep(1)  # a deadline that passed meanwhile must not end it afterwards
    assert (seen(pool)["began"], pool.worker(0)["restarts"]) == (1, 0)
    (told,) = pool.events("worker starved")
    assert "run_in" in told["hint"]


@pytest.mark.long
def test_a_blocked_loop_is_ended_though_a_thread_computes(start_pool: StartPool, redis_server: Any) -> None:
    config = "[pool]\nbeat_limit_s = 1.0"
    pool = start_pool(BLOCKING, redis_url=redis_server.url, workers=1, config=config)
    redis_server.sync().xadd("events", {"n": "1"})
    eventually(lambda: seen(pool)["began"])
    redis_server.sync().xadd("other", {"n": "1"})
    (left,) = eventually(lambda: pool.events("worker exited")[:1])
    assert left["reason"] == "hung"
    assert not pool.events("worker starved")
    redis_server.sync().delete("events", "other")
