"""A task that talks to Redis ends when it is cancelled, whatever it waits for at that moment."""

import asyncio
from typing import Any

import pytest

from supervisor.broker.connect import client

#: A command waits for its reply after fewer turns of the loop.
TURNS_MAX = 12


async def cancelled(store: Any, turns: int) -> bool:
    """Return whether a command that waits for long ends when it is cancelled after so many turns of the loop."""
    waiting = asyncio.create_task(store.execute_command("BLPOP", "nothing", 0))
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    done, _ = await asyncio.wait([waiting], timeout=30)
    return bool(done) and waiting.cancelled()


@pytest.mark.parametrize("turns", range(TURNS_MAX))
async def test_a_command_is_cancelled_at_any_turn_of_the_loop(redis: Any, redis_url: str, turns: int) -> None:
    """redis-py sends with `asyncio.wait_for`, which before Python 3.12 drops a cancellation that comes as it ends."""
    async with client(redis_url, timeout_s=60) as store:
        await store.ping()
        assert await cancelled(store, turns)
        assert await store.ping() is True
