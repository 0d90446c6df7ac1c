"""What an executor's runner has in hand, and whom it tells how that ended."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from supervisor.worker.delivery import Delivery


class HandlerTimeoutError(Exception):
    """The handler did not end within its `timeout_s`."""


class Settle(Protocol):
    """Who decides what becomes of a delivery."""

    def done(self, delivery: Delivery) -> None:
        """The handler returned."""

    def failed(self, delivery: Delivery, error: BaseException) -> None:
        """The handler raised, or the message did not fit it."""

    def progress(self) -> None:
        """There is room again."""

    def broke(self, error: BaseException) -> None:
        """Not the handler but what runs it has failed: a bug that must not leave the worker idle."""


class _Forked:
    """Whether this process is a copy of the worker, which a handler has forked."""

    here = False


os.register_at_fork(after_in_child=lambda: setattr(_Forked, "here", True))


def begin_process() -> None:
    """This process is the worker itself."""
    _Forked.here = False


class Runner:
    """A task and what it has in hand."""

    __slots__ = ("current", "started_s", "task", "timed_out", "wake")

    def __init__(self) -> None:
        self.current: Sequence[Delivery] = ()
        self.started_s = 0.0
        #: It was cancelled, because its message is out of time.
        self.timed_out = False
        self.wake: asyncio.Future[None] | None = None
        self.task: asyncio.Task[None]

    def finish(self) -> None:
        """What was in hand is settled; if it was cancelled, the next message must not be taken for cancelled too."""
        if _Forked.here:  # what comes back here from a handler's os.fork must not work on as the worker's twin
            os._exit(1)
        self.current = ()
        if self.timed_out:
            self.timed_out = False
            while self.task.cancelling():
                self.task.uncancel()
