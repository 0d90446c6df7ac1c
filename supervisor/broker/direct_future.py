"""A future whose waiting task goes on at once, and not at the next turn of the event loop."""

import asyncio
from asyncio import _enter_task, _leave_task
from collections.abc import Callable
from contextvars import Context
from typing import Any


class DirectFuture(asyncio.Future[None]):
    """Awaited by one task. An idle worker saves a turn of the loop, with its system call, for each task on the way."""

    _resume: Callable[[Any], object] | None = None
    _context: Context

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        """Take the callback of the task that begins to wait; `wake` calls it by itself."""
        if context is not None:
            self._resume, self._context = callback, context
        super().add_done_callback(callback, context=context)

    def wake(self, *, at_once: bool = True) -> None:
        """Set the result; with `at_once` run the waiting task's next step before returning. Nothing if it is done."""
        if self.done():
            return
        resume = self._resume
        if resume is None or not at_once:
            self.set_result(None)
            return
        self.remove_done_callback(resume)
        self.set_result(None)
        loop, present = self.get_loop(), asyncio.current_task()
        if present is not None:  # a step may not begin within another one's
            _leave_task(loop, present)
        try:
            self._context.run(resume, self)
        finally:
            if present is not None:
                _enter_task(loop, present)
