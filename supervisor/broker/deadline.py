"""A limit on time for waits that are many and short."""

import asyncio
import math
from types import TracebackType


class Deadline:
    """As `asyncio.timeout`, for one task at a time, and cheap: its timer is not set for each wait.

    The timer goes on when a wait is over. When it fires it looks whether a wait is due, and sets itself again for one
    that is not.
    """

    def __init__(self) -> None:
        #: The loop of the first wait: asking for the running loop is a system call.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        #: When it fires.
        self._timer_s = math.inf
        self._task: asyncio.Task[object] | None = None
        self._due_s = math.inf
        self._cancelling = 0
        self._expired = False

    def after(self, limit_s: float) -> "Deadline":
        """Return the context manager; it raises TimeoutError when its body takes longer."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        self._due_s = loop.time() + limit_s
        if self._timer is None or self._timer_s > self._due_s:
            self._set(loop)
        return self

    def __enter__(self) -> None:
        self._task = task = asyncio.current_task(self._loop)
        self._cancelling = task.cancelling() if task is not None else 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._expired:
            self._expired = False
            if task is not None and task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = self._due_s
        self._timer = loop.call_at(self._due_s, self._fired)

    def _fired(self) -> None:
        self._timer = None
        if self._task is None or self._expired:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._due_s:
            self._set(loop)
        else:
            self._expired = True
            self._task.cancel()
