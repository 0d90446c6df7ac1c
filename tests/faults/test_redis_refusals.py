"""Redis answers, but refuses: every worker keeps running, uses almost no CPU, logs the refusal once, and recovers.

Each case causes one refusal while messages are in hand, so that their acks meet it; each worker reads two streams.
"""

import re
import time
from collections.abc import Callable, Iterator

import pytest

from tests.faults.test_redis_faults import HOLDING, cpu_s, pause_s, pending, restarts
from tests.support.faults import Bounds
from tests.support.pool import Pool
from tests.support.recording import seen
from tests.support.refusals import PAUSE_S, REFUSALS, SERVER_OPTIONS
from tests.support.servers import RedisServer, default_flavour
from tests.support.waiting import eventually

StartPool = Callable[..., Pool]
WORKERS = 2
IN_HAND = 10
#: Shorter than the time in which a worker may say a thing once.
LASTS_S = PAUSE_S
#: One of each kind: refuses writes, refuses all, refuses new connections.
SHORT = ("oom",)

TWO_STREAMS = (
    HOLDING
    + """
    @handler("others", group="workers")
    async def other(message: Message) -> None:
        record(message.fields["n"])
"""
)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(default_flavour(), options=SERVER_OPTIONS) as made:
        yield made


def complaints(pool: Pool) -> dict[int, int]:
    """Pid -> its log lines of level warning and above, since the beginning."""
    found: dict[int, int] = {}
    for line in (pool.folder / "err").read_text().splitlines():
        if '"slot":' in line and '"level": "info"' not in line:
            pid = int(line.partition('"pid": ')[2].partition(",")[0].rstrip("}"))
            found[pid] = found.get(pid, 0) + 1
    return found


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in REFUSALS]
)
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
        eventually(lambda: pending(redis) == 0, what="acks go through")
    refusal.end(server, redis)
    with bound.within("it serves again until all is handled", refusal.recovers_ms):
        redis.xadd("events", {"n": "new"})
        redis.xadd("others", {"n": "other"})
        eventually(lambda: seen(pool)["new"] and seen(pool)["other"], interval_s=0.005)
    eventually(lambda: pending(redis) == 0)
    bound.check(f"CPU of a worker while Redis says {refusal.told or name}", spent_s, 0.1, "s/s")
    if refusal.told:
        # A cause that shows only after a lost connection is named when the outage is over.
        eventually(lambda: re.search(refusal.told, pool.output), what=pool.output)
    assert max(said.values(), default=0) <= 1 + lasted_s // 5, "a worker says it once in five seconds"
    pool.wait_ready()
    assert pool.pids() == before and restarts(pool) == [0] * WORKERS
    assert {text: count for text, count in seen(pool).items() if count != 1} == {"done": IN_HAND + 1}
