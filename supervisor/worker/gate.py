"""While a suspect runs, nothing else of the same worker may start: the next crash must name its message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Gate:
    """Open, but for the time of a suspect."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._one = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """No suspect runs or is about to."""
        return self._open.is_set()

    async def passed(self) -> None:
        """Wait until it is open; call it before messages are started."""
        await self._open.wait()

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Keep it closed; only one at a time can."""
        async with self._one:
            self._open.clear()
            try:
                yield
            finally:
                self._open.set()
