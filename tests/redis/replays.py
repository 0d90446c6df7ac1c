"""Replays of all dead letters of a group, for tests."""

from typing import Any

from supervisor.broker.replay import replay
from supervisor.keys import dead_key, replay_key, retries_key
from tests.support.letters import add_dead_letter, letters

STREAM, GROUP = "events", "workers"
DEAD, COPIES = dead_key(STREAM, GROUP), replay_key(STREAM, GROUP)
QUICK = {"consumer": {"block_ms": 100}}


async def replay_all(redis: Any) -> list[str]:
    return [outcome.outcome for outcome in await replay(redis, await letters(redis, STREAM, GROUP))]


def trimmed(sync: Any, count: int, **fields: Any) -> list[str]:
    """The ids of `count` messages that were given up and whose entries are trimmed."""
    return [add_dead_letter(sync, STREAM, GROUP, {"n": n, **fields}, trimmed=True)[1] for n in range(count)]


async def nothing_left(redis: Any) -> bool:
    return not await redis.xlen(COPIES) and not await redis.exists(retries_key(COPIES, GROUP))
