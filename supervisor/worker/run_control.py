"""What a worker is asked to do, and what holds up its messages: stop, pause, rescan, isolation."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from supervisor.broker.direct_future import DirectFuture

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class RunControl:
    """The one owner of these states; all tasks of a worker wait here for a change."""

    def __init__(self) -> None:
        self.stopping = False
        self.paused = False
        #: While a suspect runs, nothing else may start: the next crash must name its message.
        self.isolating = False
        #: How often a scan of the pending lists was asked for.
        self.rescans = 0
        #: What tasks wait for, by their futures.
        self._conditions: dict[DirectFuture, Callable[[], object]] = {}
        self._check_due = False
        self._isolation = asyncio.Lock()

    def notify(self) -> None:
        """Have the conditions checked at the next iteration of the event loop; tasks whose condition is true go on."""
        if self._check_due:
            return
        for waiter in self._conditions:
            self._check_due = True
            waiter.get_loop().call_soon(self._check)
            return

    async def until(self, condition: Callable[[], object], limit_s: float | None = None) -> None:
        """Wait until `condition` is true, at most `limit_s`. It is checked after each `notify`."""
        if limit_s is None:
            await self._until(condition)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._until(condition)

    async def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            waiter = DirectFuture()
            self._conditions[waiter] = condition
            try:
                await waiter
            finally:
                del self._conditions[waiter]

    def _check(self) -> None:
        # A task whose condition is false is not woken: most of these wait through many batches.
        self._check_due = False
        for waiter, condition in list(self._conditions.items()):
            try:
                is_true = condition()
            except Exception:  # its own task is to raise it
                is_true = True
            if is_true:
                waiter.wake()

    @property
    def may_start(self) -> bool:
        """Whether messages may be handed to their handlers."""
        return not (self.paused or self.isolating)

    async def until_may_start(self) -> bool:
        """Wait until messages may be started; False when the worker stops instead."""
        if not self.may_start:
            await self.until(lambda: self.may_start or self.stopping)
        return self.may_start and not self.stopping

    def stop(self) -> None:
        """Take nothing new, for good."""
        self.stopping = True
        self.notify()

    def pause(self, paused: bool) -> bool:
        """Start nothing, or go on; return whether that is a change."""
        changed, self.paused = self.paused != paused, paused
        if changed:
            self.notify()
        return changed

    def rescan(self) -> None:
        """Have every consumer read its own pending list again."""
        self.rescans += 1
        self.notify()

    @asynccontextmanager
    async def isolation(self) -> AsyncIterator[None]:
        """Keep everything else from starting; one at a time."""
        async with self._isolation:
            self.isolating = True
            try:
                yield
            finally:
                self.isolating = False
                self.notify()
