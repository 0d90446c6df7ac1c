"""RQ without results; its SimpleWorker, which runs jobs without a fork for each."""

import os
import sys

from redis import Redis
from rq import Queue


def work(event_type: str, user_id: str, email: str, timestamp: str) -> None:
    """Do nothing."""


if __name__ == "__main__":
    redis = Redis.from_url(os.environ["QUEUE_URL"])
    prepared = [
        Queue.prepare_data(
            "rq_app.work", ("user_created", str(n), "user@example.com", "2026-01-01T00:00:00Z"), result_ttl=0
        )
        for n in range(int(sys.argv[1]))
    ]
    Queue("default", connection=redis).enqueue_many(prepared)
