"""Kills processes of pools, and Redis, at random moments, and proves that each kill happened."""

import os
import random
import signal
from collections import Counter
from collections.abc import Sequence

import psutil

from tests.support.pool import Pool
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

WORKER, KEEPER, RELAY, REDIS = "worker", "keeper", "relay", "redis"


class Kills:
    """What was killed."""

    def __init__(self, chance: random.Random, pools: Sequence[Pool], server: RedisServer) -> None:
        self.chance = chance
        self.pools = pools
        self.server = server
        #: What -> how often it was killed; the process is gone then.
        self.done: Counter[str] = Counter()
        #: Of all workers that were killed.
        self.workers: set[int] = set()

    def plan(self, kinds: Sequence[str], count: int, redis_max: int) -> list[str]:
        """Return what to kill, in random order: each kind, then workers and others, and Redis not too often."""
        redis_left = redis_max - (REDIS in kinds)
        found = list(kinds)
        while len(found) < count:
            kind = self.chance.choice(kinds)
            if kind == REDIS and redis_left == 0:
                continue
            redis_left -= kind == REDIS
            found.append(kind)
        self.chance.shuffle(found)
        return found

    def kill(self, what: str) -> None:
        """Kill one of these; Redis is started again."""
        pool = self.chance.choice(self.pools)
        if what == REDIS:
            before = self.server.pid
            self.server.kill()
            assert not psutil.pid_exists(before)
            self.server.start()
        elif what == WORKER:
            self.workers.add(
                eventually(lambda: pool.kill_worker(self.chance.choice(list(pool.pids()))), what="one lives")
            )
        else:
            _kill(eventually(lambda: _service(pool, what), what=f"the {what} lives"))
        self.done[what] += 1

    def kill_pool(self, pool: Pool) -> None:
        """Kill all of a pool at once, and start it again."""
        self.workers |= set(pool.pids().values())
        pool.send(signal.SIGKILL)
        pool.wait()
        pool.start()
        self.done["pool"] += 1


def _service(pool: Pool, name: str) -> int | None:
    return next((one["pid"] for one in pool.ask("status")["services"] if one["name"] == name), None)


def _kill(pid: int) -> None:
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, what=f"{pid} is dead")
