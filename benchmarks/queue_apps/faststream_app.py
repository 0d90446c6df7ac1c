"""FastStream on a Redis stream: `faststream_app:single` calls its handler for each message, `:batch` for a list."""

import asyncio
import os
import sys

from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub
from pydantic import BaseModel

STREAM, COUNT = "faststream", 100


class UserCreated(BaseModel):
    """The four fields."""

    event_type: str
    user_id: str
    email: str
    timestamp: str


def app(*, batch: bool) -> FastStream:
    """An app with one subscriber."""
    broker = RedisBroker(os.environ["QUEUE_URL"], logger=None, apply_types=False)
    stream = StreamSub(STREAM, group=STREAM, consumer=str(os.getpid()), batch=batch, max_records=COUNT)

    async def work(events) -> None:  # noqa: ANN001 - with an annotation FastStream would validate
        """Do nothing."""

    broker.subscriber(stream=stream)(work)
    return FastStream(broker)


single, batch = app(batch=False), app(batch=True)


async def publish(count: int) -> None:
    """In its own format."""
    user = UserCreated(event_type="user_created", user_id="1", email="user@example.com", timestamp="2026-01-01")
    async with RedisBroker(os.environ["QUEUE_URL"], logger=None) as broker:
        for _ in range(0, count, 100):
            await asyncio.gather(*(broker.publish(user, stream=STREAM) for _ in range(100)))


if __name__ == "__main__":
    asyncio.run(publish(int(sys.argv[1])))
