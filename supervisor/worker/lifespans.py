"""Enters the project's `@worker_lifespan` functions before a worker's first message, and leaves them after its last."""

from __future__ import annotations

import contextlib
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from supervisor.errors import HandlerError, SupervisorError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supervisor.handling.loader import HandlerSpec
    from supervisor.handling.worker_lifespan import Lifespan


class LifespanFailedError(SupervisorError):
    """A lifespan raised; `__cause__` is what."""


class WorkerLifespans:
    """The lifespans of one worker, in the order in which they are entered."""

    def __init__(self, specs: Iterable[HandlerSpec]) -> None:
        """Take those of the project's handlers; each once."""
        self._lifespans = list(dict.fromkeys(lifespan for spec in specs for lifespan in spec.lifespans))
        self._stack = AsyncExitStack()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._lifespans)

    async def enter(self) -> Any:
        """Run each up to its `yield`; return the state for handlers. Raises LifespanFailedError.

        When one fails, or the task is cancelled, those that were entered before are left.
        """
        try:
            return await self._enter_each()
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to report
                await self._stack.aclose()
            raise

    async def _enter_each(self) -> Any:
        state: Any = {}
        for lifespan in self._lifespans:
            try:
                yielded = await self._stack.enter_async_context(asynccontextmanager(lifespan.function)())
            except Exception as error:
                raise LifespanFailedError(f"{lifespan.name} failed before its yield: {error!r}") from error
            if len(self._lifespans) == 1:
                return {} if yielded is None else yielded
            _merge(state, yielded, lifespan)
        return state

    async def leave(self) -> None:
        """Run what comes after each `yield`, the last entered one first. Raises LifespanFailedError."""
        try:
            await self._stack.aclose()
        except Exception as error:
            names = ", ".join(lifespan.name for lifespan in self._lifespans)
            raise LifespanFailedError(f"{names} failed after its yield: {error!r}") from error


def _merge(state: dict[str, Any], yielded: Any, lifespan: Lifespan) -> None:
    if yielded is None:
        return
    if not isinstance(yielded, dict):
        raise HandlerError(f"{lifespan.where}: {lifespan.name} must yield a dict, since there are other lifespans")
    if taken := state.keys() & yielded.keys():
        raise HandlerError(f"{lifespan.where}: {lifespan.name} yields {sorted(taken)[0]!r}, which another one yields")
    state.update(yielded)
