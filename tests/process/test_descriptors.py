"""A worker without free descriptors: the pool is degraded and says what to do, and no message is charged."""

import resource
from collections.abc import Callable
from typing import Any

from supervisor.keys import dead_key
from tests.support.pool import Pool
from tests.support.recording import RECORD, seen
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
OPENS = (
    RECORD
    + """
    @handler("events", group="workers", max_deliveries=2, retry_base_s=0.05, retry_max_s=0.2)
    async def handle(message: Message) -> None:
        with open("handlers.py"):
            record("done" + message.fields["n"] + "/" + str(message.deliveries))
"""
)


def test_without_descriptors_nothing_is_charged(start_pool: StartPool, redis_server: Any) -> None:
    pool = start_pool(OPENS, redis_url=redis_server.url, workers=1)
    redis, pid = redis_server.sync(), pool.pids()[0]
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    for n in range(5):
        redis.xadd("events", {"n": n})

    def reasons() -> list[str]:
        return [reason for reason in pool.ask("status")["degraded_reasons"] if "lacks descriptors" in reason]

    assert "ulimit -n" in eventually(reasons)[0] and pool.ask("status")["state"] == "degraded"
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    eventually(lambda: all(seen(pool)[f"done{n}/1"] == 1 for n in range(5)))
    eventually(lambda: pool.ask("status")["state"] == "healthy", 20)
    eventually(lambda: len(pool.events("worker has resources again")) == 1)
    assert len(pool.events("worker lacks resources")) == 1
    assert redis.xlen(dead_key("events", "workers")) == 0 and pool.worker(0)["restarts"] == 0
