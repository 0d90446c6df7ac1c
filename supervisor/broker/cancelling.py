"""Ends tasks that talk to Redis."""

import asyncio
from typing import Any

#: A task that has not ended by then is cancelled again.
_AGAIN_S = 0.1


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks until they have ended; what they raise is dropped.

    Once is not enough: before Python 3.12 `asyncio.wait_for`, which redis-py uses, may drop a cancellation.
    """
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)
