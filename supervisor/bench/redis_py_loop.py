"""What a user would write with redis-py instead of running a pool: one pipeline a batch, with XACK and XREADGROUP.

`python -m supervisor.bench.redis_py_loop STREAM GROUP WORK` drains a stream and exits. The variable BENCH_URL names the
server; WORK is a name of `WORK`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

import uvloop
from pydantic import BaseModel

from supervisor.broker.connect import client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    Work = Callable[[dict[bytes, bytes]], Awaitable[None]]

#: Not an argument: a URL may hold a password, and anybody can see arguments.
URL_VARIABLE = "BENCH_URL"
COUNT = 100
CONSUMER = "loop"


class UserCreated(BaseModel):
    """What the benchmark publishes."""

    event_type: str
    user_id: int
    email: str
    timestamp: str


async def ignore(fields: dict[bytes, bytes]) -> None:
    """Do not look at the fields."""


async def decode(fields: dict[bytes, bytes]) -> None:
    """Decode all of them."""
    {name.decode(): value.decode() for name, value in fields.items()}


async def validate(fields: dict[bytes, bytes]) -> None:
    """Make a model of them."""
    UserCreated.model_validate({name.decode(): value.decode() for name, value in fields.items()})


#: By the name of the pool's handler that does the same.
WORK: dict[str, Work] = {"message": ignore, "dict": decode, "model": validate}


async def drain(redis: Redis, stream: str, group: str, work: Work, *, at_once: int = 1) -> None:
    """Read, await `work` for each entry and ack, until nothing is left; with `at_once`, a batch works together."""
    done: list[bytes] = []
    while True:
        async with redis.pipeline(transaction=False) as pipe:
            if done:
                pipe.xack(stream, group, *done)
            pipe.xreadgroup(group, CONSUMER, {stream: ">"}, count=max(COUNT, at_once))
            reply: Any = (await pipe.execute())[-1]
        entries = _entries(reply)
        if not entries:
            return
        if at_once > 1:
            await asyncio.gather(*(work(fields) for _, fields in entries))
        else:
            for _, fields in entries:
                await work(fields)
        done = [entry_id for entry_id, _ in entries]


def _entries(reply: Any) -> list[Any]:
    """Return the entries, whether the reply is RESP2's list of pairs or RESP3's map."""
    if not reply:
        return []
    entries: list[Any] = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    return entries[0] if entries and isinstance(entries[0], list) else entries


async def main(url: str, stream: str, group: str, work: str) -> None:
    """Drain with the work of that name."""
    redis = client(url)
    try:
        await drain(redis, stream, group, WORK[work])
    finally:
        await redis.aclose()


if __name__ == "__main__":
    uvloop.run(main(os.environ[URL_VARIABLE], *sys.argv[1:4]))
