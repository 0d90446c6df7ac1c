"""taskiq on a Redis stream, a hundred entries a read."""

import asyncio
import os
import sys

from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(os.environ["QUEUE_URL"], queue_name="taskiq", xread_count=100)


@broker.task
async def work(event_type: str, user_id: str, email: str, timestamp: str) -> None:
    """Do nothing."""


async def publish(count: int) -> None:
    """A hundred at a time."""
    await broker.startup()
    for _ in range(0, count, 100):
        await asyncio.gather(
            *(work.kiq("user_created", "1", "user@example.com", "2026-01-01T00:00:00Z") for _ in range(100))
        )
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(publish(int(sys.argv[1])))
