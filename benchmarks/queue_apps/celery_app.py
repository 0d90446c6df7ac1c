"""Celery: results ignored, nothing said on other channels, tasks fetched in large batches."""

import os
import sys

from celery import Celery

app = Celery("celery_app", broker=os.environ["QUEUE_URL"])
app.conf.task_ignore_result = True
app.conf.worker_prefetch_multiplier = 100
app.conf.worker_enable_remote_control = False
app.conf.worker_send_task_events = False
app.conf.broker_connection_retry_on_startup = True
app.conf.broker_pool_limit = 1


@app.task(name="work")
def work(event_type: str, user_id: str, email: str, timestamp: str) -> None:
    """Do nothing."""


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        work.delay("user_created", str(number), "user@example.com", "2026-01-01T00:00:00Z")
