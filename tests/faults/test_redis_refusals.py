"""Redis answers, but refuses: every worker lives on, costs next to nothing, says so once, and goes on by itself.

Each case brings about one refusal, with messages in hand whose acks it hits, and two streams a worker.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis as redis_py

from tests.faults.test_redis_faults import cpu_s, pause_s, pending, restarts
from tests.support.faults import Bounds
from tests.support.pool import Pool
from tests.support.recording import RECORD, seen
from tests.support.servers import RedisServer, default_flavour, free_port
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
WORKERS = 2
IN_HAND = 10
#: Shorter than the time in which a worker may say a thing once.
LASTS_S = 3.5

TWO_STREAMS = (
    RECORD
    + """
    import asyncio
    @handler("events", group="workers", timeout_s=600)
    async def handle(message: Message) -> None:
        record(message.fields["n"])
        while message.fields["n"].startswith("hold") and not os.path.exists("go"):
            await asyncio.sleep(0.02)
        record("done")

    @handler("others", group="workers")
    async def other(message: Message) -> None:
        record(message.fields["n"])
"""
)


@dataclass(frozen=True)
class Refusal:
    """How to have a server refuse, and what a worker's complaint of it has."""

    begin: Callable[[RedisServer, redis_py.Redis], None]
    end: Callable[[RedisServer, redis_py.Redis], None]
    told: str
    #: Acks go through meanwhile.
    settles: bool = False
    #: How long after its end everything must work.
    recovers_ms: float = 4000


def setting(name: str, bad: Any, good: Any, told: str, **more: Any) -> Refusal:
    return Refusal(
        lambda _, redis: redis.config_set(name, bad), lambda _, redis: redis.config_set(name, good), told, **more
    )


def kill_clients(redis: redis_py.Redis) -> None:
    redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def too_many(_: RedisServer, redis: redis_py.Redis) -> None:
    redis.config_set("maxclients", 1)
    kill_clients(redis)


def another_password(_: RedisServer, redis: redis_py.Redis) -> None:
    redis.config_set("requirepass", "new")
    kill_clients(redis)


def disk_full(server: RedisServer, redis: redis_py.Redis) -> None:
    """A folder in the place of the dump: it can't be written."""
    (server.folder / "dump.rdb" / "in the way").mkdir(parents=True)
    redis.config_set("save", "3600 1")
    redis.bgsave()
    eventually(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")


def disk_free(server: RedisServer, redis: redis_py.Redis) -> None:
    shutil.rmtree(server.folder / "dump.rdb")
    redis.config_set("save", "")


def endless_script(server: RedisServer, redis: redis_py.Redis) -> None:
    def run() -> None:
        with contextlib.suppress(redis_py.RedisError), server.sync() as other:
            other.eval("while true do end", 0)

    redis.config_set("lua-time-limit", 50)
    threading.Thread(target=run, daemon=True).start()
    eventually(lambda: "BUSY" in refused(redis))


def end_script(_: RedisServer, redis: redis_py.Redis) -> None:
    redis.script_kill()
    eventually(redis.ping)


def refused(redis: redis_py.Redis) -> str:
    try:
        redis.ping()
    except redis_py.ResponseError as error:
        return str(error)
    return ""


def replica_of_nobody(redis: redis_py.Redis) -> None:
    redis.replicaof("127.0.0.1", str(free_port()))


def cut_off_replica(_: RedisServer, redis: redis_py.Redis) -> None:
    redis.config_set("replica-serve-stale-data", "no")
    replica_of_nobody(redis)


def loading(server: RedisServer, redis: redis_py.Redis) -> None:
    """Its data is read back slowly, for about as long as a case lasts."""
    redis.execute_command("DEBUG", "POPULATE", 30_000)
    redis.config_set("key-load-delay", 100)
    redis.config_set("loading-process-events-interval-bytes", 1024)

    def run() -> None:
        with contextlib.suppress(redis_py.RedisError), server.sync() as other:
            other.execute_command("DEBUG", "RELOAD")

    threading.Thread(target=run, daemon=True).start()
    eventually(lambda: redis.info("persistence")["loading"] == 1)


REFUSALS = {
    "oom": setting("maxmemory", 1, 0, "", settles=True),
    "misconf": Refusal(disk_full, disk_free, "MISCONF"),
    "noreplicas": setting("min-replicas-to-write", 1, 0, "NOREPLICAS"),
    "too many clients": Refusal(
        too_many, lambda _, redis: redis.config_set("maxclients", 1000), "max number of clients"
    ),
    "password": Refusal(another_password, lambda _, redis: redis.config_set("requirepass", ""), "Authentication"),
    "readonly": Refusal(
        lambda _, redis: replica_of_nobody(redis), lambda _, redis: redis.replicaof("NO", "ONE"), "read only"
    ),
    "masterdown": Refusal(cut_off_replica, lambda _, redis: redis.replicaof("NO", "ONE"), "MASTER is down"),
    "busy": Refusal(endless_script, end_script, "BUSY"),
    "loading": Refusal(
        loading, lambda _, redis: eventually(lambda: not redis.info("persistence")["loading"], 30), "loading"
    ),
    "paused": Refusal(
        lambda _, redis: redis.execute_command("CLIENT", "PAUSE", int(LASTS_S * 1000), "ALL"), lambda *_: None, ""
    ),
}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(default_flavour(), options=("--enable-debug-command", "yes")) as made:
        yield made


def complaints(pool: Pool) -> dict[int, int]:
    """Pid -> its log lines of level warning and above, since the beginning."""
    found: dict[int, int] = {}
    for line in (pool.folder / "err").read_text().splitlines():
        if '"slot":' in line and '"level": "info"' not in line:
            pid = int(line.partition('"pid": ')[2].partition(",")[0].rstrip("}"))
            found[pid] = found.get(pid, 0) + 1
    return found


@pytest.mark.parametrize("name", REFUSALS)
def test_redis_refuses(name: str, start_pool: StartPool, server: RedisServer, bound: Bounds) -> None:
    refusal, redis = REFUSALS[name], server.sync()
    pool = start_pool(TWO_STREAMS, redis_url=server.url, workers=WORKERS, config="[pool]\nbeat_limit_s = 2.0\n")
    before = pool.pids()
    for n in range(IN_HAND):
        redis.xadd("events", {"n": f"hold{n}"})
    eventually(lambda: len(seen(pool)) == IN_HAND)
    refusal.begin(server, redis)
    (pool.folder / "go").touch()  # their acks meet the refusal
    eventually(lambda: seen(pool)["done"] == IN_HAND)
    began_s, spent_s = time.monotonic(), cpu_s(list(before.values()))
    pause_s(LASTS_S)
    lasted_s = time.monotonic() - began_s
    spent_s = (cpu_s(list(before.values())) - spent_s) / lasted_s / WORKERS
    said = complaints(pool)
    if refusal.settles:
        assert pending(redis) == 0
    refusal.end(server, redis)
    with bound.within("it serves again until all is handled", refusal.recovers_ms):
        redis.xadd("events", {"n": "new"})
        redis.xadd("others", {"n": "other"})
        eventually(lambda: seen(pool)["new"] and seen(pool)["other"], interval_s=0.005)
    eventually(lambda: pending(redis) == 0)
    bound.check(f"CPU of a worker while Redis says {refusal.told or name}", spent_s, 0.1, "s/s")
    if refusal.told:
        assert refusal.told in pool.output
    assert max(said.values(), default=0) <= 1, "a worker says it once in five seconds"
    pool.wait_ready()
    assert pool.pids() == before and restarts(pool) == [0] * WORKERS
    assert {text: count for text, count in seen(pool).items() if count != 1} == {"done": IN_HAND + 1}
