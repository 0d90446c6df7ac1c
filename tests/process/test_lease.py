"""The pool's lease in Redis: held while any worker runs, and never by two pools."""

import json
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from supervisor.errors import EXIT_DRAIN, EXIT_OK, EXIT_RUNNING
from supervisor.keeper.lease import LEASE_MS
from supervisor.keys import host_key
from tests.support.pool import Pool, kill_all
from tests.support.servers import AnyServer
from tests.support.standins import Standins
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
HOST = '[pool]\nhost = "here"\ndrain_s = 15\n'
LEASE = host_key("here")
HANDLERS = """
    import asyncio, pathlib
    from supervisor import handler

    @handler("events", group="g")
    async def handle(message: dict[str, str]) -> None:
        n = message["n"]
        pathlib.Path("began" + n).touch()
        while not pathlib.Path("go").exists():
            await asyncio.sleep(0.01)
        pathlib.Path("done" + n).touch()
"""


def keeper(pool: Pool | Standins) -> psutil.Process:
    services = pool.ask("status")["services"]
    return psutil.Process(next(service["pid"] for service in services if service["name"] == "keeper"))


def busy(pool: Pool, redis: Any) -> None:
    """Publish a message whose handler runs until the test ends it."""
    redis.xadd("events", {"n": "1"})
    eventually((pool.folder / "began1").exists)
    eventually(lambda: any(worker["in_flight"] for worker in pool.ask("status")["workers"]))


def test_the_lease_is_held_until_the_last_worker_has_exited(start_pool: StartPool, redis_server: AnyServer) -> None:
    redis = redis_server.sync()
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=2, config=HOST)
    busy(pool, redis)
    pool.send(signal.SIGTERM)
    eventually(lambda: pool.ask("status")["state"] == "draining" and len(pool.pids()) == 1)
    redis.pexpire(LEASE, 10 * LEASE_MS)
    eventually(lambda: 0 < redis.pttl(LEASE) <= LEASE_MS, what="the lease is renewed while a worker drains")
    (pool.folder / "go").touch()
    assert pool.wait() == EXIT_OK
    assert (pool.folder / "done1").exists()
    assert redis.exists(LEASE) == 0


def test_the_keeper_stops_after_workers_that_had_to_be_killed(standins: Callable[..., Standins]) -> None:
    pool = standins(workers=2, orders={"*": "stubborn"}, pool="drain_s = 0.5").start()
    pid = keeper(pool).pid
    assert pool.stop() == EXIT_DRAIN
    lines = [json.loads(line) for line in pool.err.splitlines() if line.startswith("{")]
    left = [line for line in lines if line["event"].endswith(" exited")]
    assert [line.get("service") for line in left] == [None, None, "keeper"]
    assert (left[-1]["pid"], left[-1]["reason"]) == (pid, "drained")


def test_a_quick_stop_releases_the_lease_too(start_pool: StartPool, redis_server: AnyServer) -> None:
    redis = redis_server.sync()
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, config=HOST)
    busy(pool, redis)
    assert redis.exists(LEASE) == 1
    pool.send(signal.SIGQUIT)
    assert pool.wait() == EXIT_DRAIN
    assert redis.exists(LEASE) == 0


def test_a_pool_whose_name_was_taken_drains_and_says_why(start_pool: StartPool, redis_server: AnyServer) -> None:
    redis = redis_server.sync()
    first = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, config=HOST)
    busy(first, redis)
    late = keeper(first)
    late.suspend()  # as on a machine that is frozen, or cut off from Redis, for longer than the lease lasts
    eventually(lambda: late.status() == psutil.STATUS_STOPPED)
    redis.pexpire(LEASE, 1)
    second = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, config=HOST)
    mine = redis.get(LEASE)
    assert mine == second.paths.token.read_bytes() != first.paths.token.read_bytes()
    late.resume()
    eventually(lambda: first.ask("status")["state"] == "draining")
    assert first.exit_code() is None, "running messages are finished first"
    for pool in (first, second):
        (pool.folder / "go").touch()
    assert first.wait() == EXIT_RUNNING
    assert (first.folder / "done1").exists()
    assert "'here'" in first.output and "[pool] name" in first.output
    assert len(first.events("pool name taken")) == 1
    assert redis.get(LEASE) == mine
    assert second.wait_ready()["pid"] == second.pid


@pytest.mark.long
def test_an_expired_or_lost_lease_is_taken_again(start_pool: StartPool, redis_server: AnyServer) -> None:
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, config=HOST)
    token, pids = pool.paths.token.read_bytes(), pool.pids()
    with redis_server.sync() as redis:
        redis.delete(LEASE)
        eventually(lambda: redis.get(LEASE) == token)
    redis_server.restart()  # without persistence: the lease is gone, too
    with redis_server.sync() as redis:
        eventually(lambda: redis.get(LEASE) == token, 40)
    assert pool.wait_ready()["pid"] == pool.pid
    assert pool.pids() == pids and not pool.events("draining")


@pytest.mark.long
def test_a_pool_that_was_killed_is_started_again_in_place(start_pool: StartPool, redis_server: AnyServer) -> None:
    """As in a container: the same host name and a new state directory, while the old lease still lasts."""
    redis = redis_server.sync()
    first = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, config=HOST)
    busy(first, redis)
    processes = first.processes()
    kill_all(processes)
    first.wait()
    eventually(lambda: not first.processes())
    assert redis.pexpire(LEASE, LEASE_MS), "nobody has given it back"
    second = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, config=HOST, ready=False)
    eventually(lambda: second.events("waiting for the lease"))
    assert redis.get(LEASE) == first.paths.token.read_bytes(), "it is not taken before its end"
    (second.folder / "go").touch()
    second.wait_ready(30)
    assert redis.get(LEASE) == second.paths.token.read_bytes()
    eventually((second.folder / "done1").exists, what="what the killed pool had in hand has run")
    assert len(second.events("waiting for the lease")) == 1


@pytest.mark.long
def test_a_pool_whose_name_another_one_on_this_machine_uses_is_refused_at_once(
    start_pool: StartPool, redis_server: AnyServer
) -> None:
    first = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, config=HOST)
    second = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, config=HOST, ready=False)
    assert second.wait() == EXIT_RUNNING
    assert f"it runs on this machine (pid {first.pid}, state directory {first.paths.state_dir})" in second.output
    assert not second.events("waiting for the lease"), "its life shows at once"
    first.wait_ready()
    assert not first.events("pool name taken")


@pytest.mark.long
def test_a_pool_whose_name_is_used_elsewhere_is_refused_at_the_next_renewal(
    start_pool: StartPool, redis_server: AnyServer
) -> None:
    redis = redis_server.sync()
    redis.set(LEASE, "a token of another machine", px=LEASE_MS)
    pool = start_pool(HANDLERS, redis_url=redis_server.url, workers=1, config=HOST, ready=False)
    eventually(lambda: pool.events("waiting for the lease"))
    eventually(lambda: redis.pttl(LEASE) < LEASE_MS * 2 / 3, what="the time of a renewal has come")
    redis.pexpire(LEASE, LEASE_MS)
    assert pool.wait() == EXIT_RUNNING
    assert "'here' is alive on this Redis: it has renewed its lease" in pool.output
    assert len(pool.events("waiting for the lease")) == 1
