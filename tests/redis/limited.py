"""What the tests of turns and rates share: pools of workers on one real server, and what ran there."""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from supervisor import Message
from supervisor.broker.inspect import groups
from supervisor.keys import group_turn_key, turn_key, turns_key
from supervisor.shared_state import SharedState
from tests.redis.worker import Worker

STREAM, GROUP = "orders", "billing"
ROW = turn_key(STREAM, GROUP, "")


class Log:
    """What ran, in order, and how many messages of each key ran at once."""

    def __init__(self) -> None:
        self.started: dict[str, list[str]] = defaultdict(list)
        self.running: dict[str, int] = defaultdict(int)
        self.together: dict[str, int] = defaultdict(int)
        self.done = 0

    async def run(self, message: Message, work: Callable[[], Awaitable[Any]]) -> None:
        key = message.fields.get("customer", "")
        self.started[key].append(message.id)
        self.running[key] += 1
        self.running["all"] += 1
        for one in (key, "all"):
            self.together[one] = max(self.together[one], self.running[one])
        try:
            await work()
        finally:
            self.running[key] -= 1
            self.running["all"] -= 1
        self.done += 1


@asynccontextmanager
async def pools(url: str, *functions: Any, count: int = 3, **sections: Any) -> AsyncIterator[list[Worker]]:
    workers = [Worker(url, list(functions), SharedState(), name=f"host{n}:0", **sections) for n in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            await worker.stop()


def in_order(ids: list[str]) -> bool:
    return ids == sorted(ids, key=lambda one: tuple(map(int, one.split("-"))))


async def fields(redis: Any) -> list[bytes]:
    """The keys for which a message has a turn."""
    return [name for name in await redis.hkeys(turns_key(STREAM, GROUP)) if name.startswith(b":")]


async def nothing_left(redis: Any) -> bool:
    rows = [key async for key in redis.scan_iter(f"{ROW}*")]
    return (
        not rows
        and not await fields(redis)
        and not await redis.exists(group_turn_key(STREAM, GROUP))
        and not (await redis.xpending(STREAM, GROUP))["pending"]
    )


async def is_held(redis: Any, count: int) -> bool:
    """Return whether exactly `count` messages wait for their turn."""
    (info,) = await groups(redis, [(STREAM, GROUP)])
    return info.waiting_turn == count


async def is_missing(redis: Any, key: str) -> bool:
    return not await redis.exists(key)
