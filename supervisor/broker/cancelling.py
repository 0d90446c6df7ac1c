"""Ends tasks that talk to Redis, and waits for events with a limit on time."""

import asyncio
import contextlib
from typing import Any


async def cancel(*tasks: asyncio.Task[Any], again_s: float = 0.1) -> None:
    """Cancel the tasks until they have ended, again after each `again_s`; what they raise is dropped.

    Once is not enough: before Python 3.12 `asyncio.wait_for`, which redis-py uses, may drop a cancellation.
    """
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=again_s)
    await asyncio.gather(*tasks, return_exceptions=True)


async def wait_at_most(limit_s: float | None, event: asyncio.Event) -> None:
    """Wait until the event is set, or until the time is over; None: without a limit."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await event.wait()
