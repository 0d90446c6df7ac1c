"""SAQ without results."""

import asyncio
import os
import sys
from typing import Any

from saq import Queue

queue = Queue.from_url(os.environ["QUEUE_URL"], name="saq")


async def work(ctx: dict[str, Any], *, event_type: str, user_id: str, email: str, timestamp: str) -> None:
    """Do nothing."""


settings = {"queue": queue, "functions": [work], "concurrency": 100}


async def publish(count: int) -> None:
    """A hundred at a time."""
    user = {"event_type": "user_created", "user_id": "1", "email": "user@example.com", "timestamp": "2026-01-01"}
    for _ in range(0, count, 100):
        await asyncio.gather(*(queue.enqueue("work", ttl=-1, **user) for _ in range(100)))
    await queue.disconnect()


if __name__ == "__main__":
    asyncio.run(publish(int(sys.argv[1])))
