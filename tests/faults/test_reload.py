"""Restarts under load, and with new code that fails only after the preflight has passed."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.errors import EXIT_OK
from tests.support.faults import Bounds, Watch
from tests.support.pool import Pool
from tests.support.recording import HOLDING, SIMPLE, seen
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]


class Load:
    """Publishes numbered messages."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self.count = 0

    def add(self, messages: int) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for n in range(self.count, self.count + messages):
            pipeline.xadd("events", {"n": n})
        pipeline.execute()
        self.count += messages

    def add_until(self, condition: Callable[[], Any], messages: int) -> None:
        """Publish until `condition` holds: 50 messages every 20 ms."""

        def is_so() -> Any:
            self.add(messages)
            return condition()

        eventually(is_so, 30, 0.02)


def operation(pool: Pool) -> dict[str, Any]:
    found: dict[str, Any] = pool.ask("status")["last_operation"] or {}
    return found


def told(pool: Pool) -> list[dict[str, Any]]:
    """Return the results of restarts; a request during the exec waits and is answered."""
    pool.ask("ping")
    return [*pool.events("restart failed"), *pool.events("restarted")]


def test_51_reload_under_load(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=3)
    arbiter, before = pool.pid, pool.pids()
    redis, load = redis_server.sync(), Load(redis_server.sync())
    code = (pool.folder / "handlers.py").read_text()
    for version in (1, 2):
        new = code.replace('record(message.fields["n"])', f'record(message.fields["n"] + ".{version}")')
        (pool.folder / "handlers.py").write_text(new)
        restarted = len(told(pool))
        pool.send(signal.SIGHUP)
        with bound.within("SIGHUP under load until 3 workers were replaced", 10_000):
            load.add_until(lambda restarted=restarted: len(told(pool)) > restarted, 50)
        assert not pool.events("restart failed")
    load.add(max(0, 2_000 - load.count))
    with bound.within(f"the rest of {load.count} messages", 10_000):
        eventually(lambda: sum(seen(pool).values()) >= load.count, 30, 0.1)
    eventually(lambda: redis.xpending("events", "workers")["pending"] == 0)
    counts = seen(pool)
    runs = [counts[f"{n}"] + counts[f"{n}.1"] + counts[f"{n}.2"] for n in range(load.count)]
    assert runs == [1] * load.count, "none is lost and none runs twice"
    versions = {text.partition(".")[2] for text in counts}
    assert versions == {"", "1", "2"}, "all three versions ran"
    assert {line["reason"] for line in pool.events("worker exited")} == {"drained"}
    status = pool.wait_ready()
    assert status["pid"] == arbiter and not set(before.values()) & set(pool.pids().values())


def test_52_reload_new_code_broken(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    # The code can be imported, but no worker forked from it can run.
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=3)
    arbiter, before = pool.pid, pool.pids()
    load = Load(redis_server.sync())
    code = (pool.folder / "handlers.py").read_text()
    (pool.folder / "handlers.py").write_text(f"import uvloop\nuvloop.run = None\n{code}")
    with bound.within("SIGHUP until the restart is given up", 10_000):
        pool.send(signal.SIGHUP)
        load.add_until(lambda: operation(pool), 50)
    assert operation(pool)["ok"] is False and "slot 0 did not stay up" in operation(pool)["error"]
    status = pool.ask("status")
    assert status["pid"] == arbiter and {1: before[1], 2: before[2]}.items() <= pool.pids().items(), (
        "two old workers remain"
    )
    load.add(500)
    eventually(lambda: len(seen(pool)) == load.count, 20, 0.05)
    (pool.folder / "handlers.py").write_text(code)
    with bound.within("SIGHUP with good code until all are READY", 15_000):
        pool.send(signal.SIGHUP)
        eventually(lambda: operation(pool).get("ok"), 60)
        pool.wait_ready()
    eventually(lambda: redis_server.sync().xpending("events", "workers")["pending"] == 0)
    assert set(seen(pool).values()) == {1} and pool.pid == arbiter


def test_52_reload_new_code_hangs(start_pool: StartPool, redis_server: Any, bound: Bounds) -> None:
    pool = start_pool(SIMPLE, redis_url=redis_server.url, workers=2)
    before, load = pool.pids(), Load(redis_server.sync())
    (pool.folder / "handlers.py").write_text("open('hangs', 'w').close()\nimport time\ntime.sleep(3600)\n")
    pool.send(signal.SIGHUP)
    eventually((pool.folder / "hangs").exists)
    load.add(1000)
    with bound.within("1000 messages while new code is imported for ever", 3000):
        eventually(lambda: len(seen(pool)) == load.count)
    assert pool.ask("status")["operation"] == {"kind": "restart", "phase": "preflight"} and pool.pids() == before
    with bound.within("SIGTERM until it has left", 3000):
        pool.send(signal.SIGTERM)
        assert pool.wait() == EXIT_OK


@pytest.mark.long
def test_52_reload_new_code_breaks_at_the_second_import(
    start_pool: StartPool, watch: Watch, redis_server: Any, bound: Bounds
) -> None:
    # The preflight can't detect this, and the new image has no way back to the old code: it keeps the old workers.
    pool = start_pool(
        HOLDING,
        redis_url=redis_server.url,
        workers=2,
        config="[pool]\ndrain_s = 1\n",
    )
    load = Load(redis_server.sync())
    load.add(20)
    eventually(lambda: len(seen(pool)) == 20)
    code, before = (pool.folder / "handlers.py").read_text(), pool.pids()
    (pool.folder / "handlers.py").write_text("open('go', 'x').close()\n" + code)
    watch.measure(pool)
    pool.send(signal.SIGHUP)
    with bound.within("SIGHUP until the pool says that it keeps its workers", 6000):
        eventually(lambda: pool.events("restart held"), 20)
    load.add(5)
    eventually(lambda: seen(pool)["done"] == 5, what="the old workers go on")
    assert pool.pids() == before and "FileExistsError" in pool.events("restart held")[0]["error"]
    (pool.folder / "handlers.py").write_text(code)
    with bound.within("mended until all workers are new", 12_000):
        eventually(lambda: pool.events("restarted"), 30)
    assert not set(pool.pids().values()) & set(before.values()) and pool.wait_ready()["pid"] == pool.pid
    eventually(lambda: seen(pool)["done"] == 25, what="what the old workers held runs in the new ones")
