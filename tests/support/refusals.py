"""Ways to have a real server refuse: each is begun and ended from outside, and the server says why."""

import contextlib
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis as redis_py

from tests.support.servers import RedisServer, free_port
from tests.support.waiting import eventually

#: DEBUG is needed for one of them.
SERVER_OPTIONS = ("--enable-debug-command", "yes")
#: How long the one that ends by itself lasts.
PAUSE_S = 3.5


@dataclass(frozen=True)
class Refusal:
    """How to make a server refuse, and what a worker then logs, as a regular expression."""

    begin: Callable[[RedisServer, redis_py.Redis], None]
    end: Callable[[RedisServer, redis_py.Redis], None]
    told: str
    #: Acks still go through.
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


def enough_again(_: RedisServer, redis: redis_py.Redis) -> None:
    assert redis.info("stats")["rejected_connections"], "somebody was refused"
    redis.config_set("maxclients", 1000)


def another_password(_: RedisServer, redis: redis_py.Redis) -> None:
    redis.config_set("requirepass", "new")
    kill_clients(redis)


def disk_full(server: RedisServer, redis: redis_py.Redis) -> None:
    """A folder in the place of the dump: it can't be written."""
    (server.folder / "dump.rdb").unlink(missing_ok=True)
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
        # A client that writes before it has read the refusal sees only a closed connection.
        too_many,
        enough_again,
        "max number of clients|Connection lost|[Cc]onnection reset|Broken pipe",
    ),
    "password": Refusal(another_password, lambda _, redis: redis.config_set("requirepass", ""), "Authentication"),
    "readonly": Refusal(
        lambda _, redis: replica_of_nobody(redis), lambda _, redis: redis.replicaof("NO", "ONE"), "read only"
    ),
    "masterdown": Refusal(
        cut_off_replica,
        lambda _, redis: redis.replicaof("NO", "ONE"),
        "MASTER is down|read only replica",
    ),
    "busy": Refusal(endless_script, end_script, "BUSY"),
    "loading": Refusal(
        loading, lambda _, redis: eventually(lambda: not redis.info("persistence")["loading"], 30), "loading"
    ),
    "paused": Refusal(
        lambda _, redis: redis.execute_command("CLIENT", "PAUSE", int(PAUSE_S * 1000), "ALL"), lambda *_: None, ""
    ),
}
