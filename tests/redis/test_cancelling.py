"""A task that talks to Redis ends when it is cancelled, whatever it waits for at that moment."""

import asyncio
import contextlib
from typing import Any

import pytest
from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.connect import client
from supervisor.broker.routed_connection import LostConnectionMixin

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


@pytest.mark.parametrize("error", [None, RedisConnectionError("reset"), RuntimeError("closed")], ids=repr)
async def test_a_cancellation_that_redis_py_drops_is_raised(error: Exception | None) -> None:
    class Dropping(Connection):
        async def send_packed_command(self, *_: Any, **__: Any) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            if error is not None:
                raise error

    class Mended(LostConnectionMixin, Dropping):
        is_connected = True

        async def disconnect(self, *_: Any, **__: Any) -> None:
            """Do nothing: no socket was opened."""

    connection = Mended(socket_timeout=30)
    sending = asyncio.create_task(connection.send_packed_command(b""))
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.wait([sending], timeout=30)
    assert sending.cancelled()
