"""A future whose waiting task goes on at once, and not at the next iteration of the event loop."""

import asyncio
from asyncio import _enter_task, _leave_task
from collections.abc import Callable
from contextvars import Context
from typing import Any


class DirectFuture(asyncio.Future[None]):
    """A future for one waiting task.

    An idle worker saves an iteration of the event loop, with its system call, for each task between socket and handler.
    """

    _resume: Callable[[Any], object] | None = None
    _context: Context

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        """Keep the callback of the task that begins to wait; `wake` calls it directly."""
        if context is not None:
            self._resume, self._context = callback, context
        super().add_done_callback(callback, context=context)

    def wake(self, *, at_once: bool = True) -> None:
        """Set the result if there is none; with `at_once` run the waiting task's next step before returning."""
        if self.done():
            return
        resume = self._resume
        if resume is None or not at_once:
            self.set_result(None)
            return
        self.remove_done_callback(resume)
        self.set_result(None)
        loop = self.get_loop()
        present = asyncio.current_task(loop)
        if present is not None:  # asyncio refuses to enter a task while another one is current
            _leave_task(loop, present)
        try:
            self._context.run(resume, self)
        except RuntimeError:  # this code runs in the context of the waiting task: the step has not begun
            loop.call_soon(resume, self, context=self._context)
        finally:
            if present is not None:
                _enter_task(loop, present)
