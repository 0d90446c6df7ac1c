"""Huey without results."""

import os
import sys

from huey import RedisHuey

huey = RedisHuey("huey", url=os.environ["QUEUE_URL"], results=False, blocking=True)


@huey.task()
def work(event_type: str, user_id: str, email: str, timestamp: str) -> None:
    """Do nothing."""


if __name__ == "__main__":
    # The task is named after its module, and this one is called `__main__` now.
    from huey_app import work

    for number in range(int(sys.argv[1])):
        work("user_created", str(number), "user@example.com", "2026-01-01T00:00:00Z")
