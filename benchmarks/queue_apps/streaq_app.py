"""streaQ without results."""

import asyncio
import os
import sys

from streaq import Worker

worker = Worker(redis_url=os.environ["QUEUE_URL"], concurrency=100, prefetch=100)


@worker.task(ttl=0)
async def work(event_type: str, user_id: str, email: str, timestamp: str) -> None:
    """Do nothing."""


async def publish(count: int) -> None:
    """A thousand at a time."""
    async with worker:
        for _ in range(0, count, 1000):
            tasks = [work.enqueue("user_created", "1", "user@example.com", "2026-01-01") for _ in range(1000)]
            await worker.enqueue_many(tasks)


if __name__ == "__main__":
    asyncio.run(publish(int(sys.argv[1])))
