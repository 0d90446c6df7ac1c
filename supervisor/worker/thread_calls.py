"""Calls of plain functions in threads, with the time at which each began.

A thread can't be ended: a call that was given up goes on, and is only counted here.
"""

from __future__ import annotations

import inspect
from contextvars import copy_context
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from supervisor.context import Held, in_hand

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from supervisor.worker.handler_threads import HandlerThreads
    from supervisor.worker.run_control import RunControl


class HeldBackError(BaseException):
    """The call has not begun, because the pool is paused. No Exception, since middleware may catch those."""


class ThreadCalls:
    """The calls of one handler."""

    def __init__(
        self, threads: HandlerThreads, loop: asyncio.AbstractEventLoop, control: RunControl, limit_s: float
    ) -> None:
        """Use `threads`, which are shared with other handlers; a call may take `limit_s`."""
        self._threads = threads
        self._control = control
        self._limit_s = limit_s
        self._loop = loop
        self._began: dict[object, float] = {}

    @property
    def oldest_s(self) -> float:
        """When the call that runs longest began, by `time.monotonic`; infinity when none runs."""
        return min(self._began.copy().values(), default=inf)

    @property
    def running(self) -> int:
        """How many run, including those that were given up."""
        return len(self._began)

    async def run(self, function: Callable[[Any], Any], argument: Any, began: Callable[[float], None]) -> Any:
        """Call `function` in the first free thread, which reports to `began` when that is; return its result.

        While the pool is paused, it is not called. Raises HeldBackError when the worker stops meanwhile.
        """
        context, call = copy_context(), object()
        # A call that was given up goes on, while its runner has the next message in hand.
        runner = in_hand.get()
        context.run(in_hand.set, Held(runner.messages if runner else ()))

        def body() -> Any:
            if self._control.paused:  # it has waited for a thread since before the pause
                raise HeldBackError
            self._began[call] = now_s = monotonic()
            self._threads.began(call, now_s + self._limit_s)
            began(now_s)
            try:
                return context.run(call_plain, function, argument)
            finally:
                del self._began[call]
                self._threads.ended(call)

        while True:
            try:
                return await self._loop.run_in_executor(self._threads, body)
            except HeldBackError:
                await self._control.until(lambda: self._control.stopping or not self._control.paused)
                if self._control.paused:
                    raise


def call_plain(function: Callable[[Any], Any], argument: Any) -> Any:
    """Call a handler that is a plain function. Raises what it raises, in a form that a coroutine can pass on."""
    try:
        return require_done(function(argument))
    except (StopIteration, GeneratorExit) as error:  # these mean something else to a coroutine
        raise RuntimeError(f"the handler raised {type(error).__name__}") from error


def require_done(result: Any) -> Any:
    """Return it. Raises TypeError for a coroutine or generator, which a plain function would only have promised."""
    if inspect.iscoroutine(result) or inspect.isgenerator(result) or inspect.isasyncgen(result):
        if not inspect.isasyncgen(result):
            result.close()
        raise TypeError(f"the handler returned a {type(result).__name__} and did nothing: make it `async def`")
    return result
