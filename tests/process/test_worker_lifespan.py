"""`@worker_lifespan` in real pools: entered before READY, left after the drain; failing, hanging and slow ones."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.errors import EXIT_DRAIN, EXIT_OK
from tests.support.pool import Pool
from tests.support.recording import RECORD, records, seen
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
LIFESPAN = (
    RECORD
    + """
    import asyncio
    from collections.abc import AsyncIterator
    from supervisor import context, worker_lifespan

    class Pool:
        name = "pool"

    @worker_lifespan
    async def resources() -> AsyncIterator[dict[str, object]]:
        record("opened")
        BEFORE
        yield {"pool": Pool()}
        AFTER
        record("closed")

    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        record(context().state["pool"].name + message.fields["n"])

    @handler("events", group="threads")
    def in_thread(message: Message) -> None:
        record("thread" + context().state["pool"].name + message.fields["n"])
"""
)


def lifespan(before: str, after: str) -> str:
    return LIFESPAN.replace("BEFORE", before or "pass").replace("AFTER", after or "pass")


def test_it_runs_around_each_worker_s_life(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(lifespan(before="", after=""), redis_url=redis_server.url, workers=2)
    assert seen(pool)["opened"] == 2
    redis_server.sync().xadd("events", {"n": "1"})
    eventually(lambda: seen(pool)["pool1"] and seen(pool)["threadpool1"])
    assert pool.stop() == EXIT_OK
    assert seen(pool)["closed"] == 2
    for pid in {pid for pid, _, _ in records(pool)}:
        texts = [text for other, text, _ in records(pool) if other == pid]
        assert (texts[0], texts[-1]) == ("opened", "closed")


def test_a_failing_one_is_a_crash_with_backoff(start_pool: StartPool, redis_server: Any) -> None:
    code = lifespan(before='if not os.path.exists("go"): raise OSError("no database")', after="")
    pool = start_pool(code, redis_url=redis_server.url, workers=1, ready=False)
    eventually(lambda: len(pool.events("worker exited")) >= 3)
    exits = pool.events("worker exited")
    assert {line["code"] for line in exits} == {1} and exits[2]["next_start_s"] > 0
    (error, *_) = pool.events("worker lifespan failed")
    assert "handlers.resources" in error["error"] and "no database" in error["error"]
    (pool.folder / "go").touch()
    pool.wait_ready()


def test_one_that_hangs_at_the_start_is_named_and_stops_at_once(start_pool: StartPool, redis_server: Any) -> None:
    code = lifespan(before="await asyncio.Event().wait()", after="")
    pool = start_pool(code, redis_url=redis_server.url, workers=3, ready=False)

    def told() -> list[tuple[int, str, str]]:
        lines = pool.events("waiting for lifespan")
        return sorted((slot, line["phase"], *line["lifespans"]) for line in lines for slot in line["slots"])

    eventually(lambda: told() == [(slot, "start", "handlers.resources") for slot in range(3)])
    status = pool.ask("status")
    assert status["state"] == "starting"
    assert {(w["state"], w["activity"]) for w in status["workers"]} == {("STARTING", "lifespan_start")}
    for worker in status["workers"]:  # even if it reached the workers
        os.kill(worker["pid"], signal.SIGINT)
    eventually(lambda: len(pool.events("worker exited")) >= 3)
    os.killpg(pool.pid, signal.SIGINT)  # as Ctrl-C does
    assert pool.wait() == EXIT_OK
    assert {left["reason"] for left in pool.events("worker exited")} == {"drained"} and "Traceback" not in pool.output


def test_one_that_hangs_at_the_end_is_ended_by_the_drain_s_deadline(start_pool: StartPool, redis_server: Any) -> None:
    code = lifespan(before="", after="await asyncio.Event().wait()")
    pool = start_pool(code, redis_url=redis_server.url, workers=2, config="[pool]\ndrain_s = 6")
    redis_server.sync().xadd("events", {"n": "1"})
    eventually(lambda: seen(pool)["pool1"] and seen(pool)["threadpool1"])
    began_s = time.monotonic()
    assert pool.stop() == EXIT_DRAIN
    assert time.monotonic() - began_s < 25, "as long as without the setting"
    told = pool.events("waiting for lifespan")
    assert {line["phase"] for line in told} == {"end"}
    assert sorted(slot for line in told for slot in line["slots"]) == [0, 1]
    assert redis_server.sync().xpending("events", "workers")["pending"] == 0


@pytest.mark.long
def test_a_slow_one_may_block_for_longer_than_a_beat(start_pool: StartPool, redis_server: Any) -> None:
    code = lifespan(before="time.sleep(2.5)", after="time.sleep(2.5)")
    config = "[pool]\nbeat_limit_s = 1.0"
    pool = start_pool(code, redis_url=redis_server.url, workers=3, config=config)
    assert pool.stop() == EXIT_OK
    assert not pool.events("worker unresponsive") and seen(pool)["closed"] == 3


def test_a_worker_that_drains_unasked_is_no_crash(start_pool: StartPool, redis_server: Any) -> None:
    code = lifespan(before="", after='while not os.path.exists("go"): await asyncio.sleep(0.05)')
    pool = start_pool(code, redis_url=redis_server.url, workers=1)
    os.kill(pool.pids()[0], signal.SIGTERM)
    eventually(lambda: pool.worker(0)["state"] == "DRAINING")
    (pool.folder / "go").touch()
    eventually(lambda: pool.worker(0)["restarts"] == 1 and pool.wait_ready())
    (left,) = pool.events("worker exited")
    assert (left["reason"], left["level"]) == ("drained", "info")
