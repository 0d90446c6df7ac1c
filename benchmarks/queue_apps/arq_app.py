"""arq without results, polling without a pause."""

import asyncio
import os
import sys
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings


async def work(ctx: dict[str, Any], event_type: str, user_id: str, email: str, timestamp: str) -> None:
    """Do nothing."""


class WorkerSettings:
    """As `arq` reads it."""

    functions = (work,)
    redis_settings = RedisSettings.from_dsn(os.environ["QUEUE_URL"])
    max_jobs = 100
    poll_delay = 0.001
    keep_result = 0
    log_results = False


async def publish(count: int) -> None:
    """A hundred at a time."""
    redis = await create_pool(WorkerSettings.redis_settings)
    for _ in range(0, count, 100):
        await asyncio.gather(
            *(redis.enqueue_job("work", "user_created", "1", "user@example.com", "2026-01-01") for _ in range(100))
        )


if __name__ == "__main__":
    asyncio.run(publish(int(sys.argv[1])))
