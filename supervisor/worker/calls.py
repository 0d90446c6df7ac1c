"""Calls of plain functions in threads, with the time at which each began.

Nobody can end a thread: a call that is given up by who awaits it goes on, and only shows here.
"""

from __future__ import annotations

import inspect
from contextvars import copy_context
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from concurrent.futures import Executor as Threads

    from supervisor.worker.runner import Runner


class Calls:
    """The calls of one handler."""

    def __init__(self, threads: Threads, loop: asyncio.AbstractEventLoop) -> None:
        """`threads` are shared with other handlers."""
        self._threads = threads
        self._loop = loop
        self._began: dict[object, float] = {}

    @property
    def oldest_s(self) -> float:
        """When the call that runs longest began, by `time.monotonic`; infinity when none runs."""
        return min(self._began.copy().values(), default=inf)

    @property
    def running(self) -> int:
        """How many run, those that were given up among them."""
        return len(self._began)

    async def run(self, function: Callable[[Any], Any], argument: Any, runner: Runner) -> None:
        """Call it in the first free thread; `runner` learns when that is."""
        context, call = copy_context(), object()

        def body() -> None:
            runner.started_s = self._began[call] = monotonic()
            try:
                _must_be_done(context.run(function, argument))
            except (StopIteration, GeneratorExit) as error:  # they mean something else to who awaits this
                raise RuntimeError(f"the handler raised {type(error).__name__}") from error
            finally:
                del self._began[call]

        await self._loop.run_in_executor(self._threads, body)


def _must_be_done(result: object) -> None:
    """What a plain function has only promised never happens: that must not pass for done."""
    if inspect.iscoroutine(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if not inspect.isasyncgen(result):
            result.close()
        raise TypeError(f"the handler returned a {type(result).__name__} and did nothing: make it `async def`")
