"""Dramatiq without middleware."""

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

broker = RedisBroker(url=os.environ["QUEUE_URL"], middleware=[])
dramatiq.set_broker(broker)


@dramatiq.actor
def work(event_type: str, user_id: str, email: str, timestamp: str) -> None:
    """Do nothing."""


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        work.send("user_created", str(number), "user@example.com", "2026-01-01T00:00:00Z")
