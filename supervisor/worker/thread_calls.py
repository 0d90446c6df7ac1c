"""The threads of a worker's plain handlers, and the calls in them, with the time at which each began.

1. A thread can't be ended: a call that was given up goes on, and is only counted here. When it goes on for too long,
   the arbiter kills the worker for it, and the crash is charged to its message.
2. Work that was queued runs once, even if no thread can be started for it now: another thread takes it, or one that is
   started later. `ThreadPoolExecutor` raises for it and runs it all the same.
3. Shared memory says until when a call may go on: a thread that holds Python's lock keeps the loop from beating.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from supervisor.context import Held, in_hand
from supervisor.core.lacks import Lack
from supervisor.shared_state import SlotField

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from supervisor.messages import Message
    from supervisor.shared_state import SharedSlot
    from supervisor.worker.run_control import RunControl
    from supervisor.worker.worker_lacks import WorkerLacks

#: Grace period for a handler that has exceeded its time limit. After that, only the end of its process ends it.
CANCEL_GRACE_S = 5.0
#: How soon to try again to start a thread.
_RETRY_S = 0.5


class HandlerThreads(ThreadPoolExecutor):
    """Threads that are started when they are needed, as far as the system allows."""

    def __init__(self, size: int, shared: SharedSlot, lacks: WorkerLacks) -> None:
        super().__init__(size, thread_name_prefix="handler")
        self.size = size
        self._shared = shared
        self._lacks = lacks
        self._loop = asyncio.get_running_loop()
        self._due_ns: dict[object, int] = {}
        self._due_lock = threading.Lock()
        self._retry: asyncio.TimerHandle | None = None

    def _adjust_thread_count(self) -> None:
        """Start a thread for what is queued; without one, try again later. Called by `submit`, in the event loop."""
        try:
            super()._adjust_thread_count()
        except (RuntimeError, MemoryError) as error:
            self._lacks.note(Lack.THREADS, error)
            if self._retry is None:
                self._retry = self._loop.call_later(_RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if self._work_queue.qsize() and not self._shutdown:
            self._adjust_thread_count()
            if self._retry is None and self._work_queue.qsize():
                self._retry = self._loop.call_later(0, self._try_again)

    def began(self, call: object, until_s: float) -> None:
        """Note that a call runs, and until when it may. Called by its thread, as `ended` is."""
        with self._due_lock:
            self._due_ns[call] = int(until_s * 1e9)
            self._publish()

    def ended(self, call: object) -> None:
        """Note that the call has ended."""
        with self._due_lock:
            del self._due_ns[call]
            self._publish()

    def _publish(self) -> None:
        self._shared.set(SlotField.THREADS_UNTIL_NS, max(self._due_ns.values(), default=0))


class HeldBackError(BaseException):
    """The call has not begun, because the pool is paused. No Exception, since middleware may catch those."""


class _Call:
    """A call and its messages."""

    __slots__ = ("charged", "messages")

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.charged = False


class ThreadCalls:
    """The calls of one handler."""

    def __init__(
        self,
        threads: HandlerThreads,
        control: RunControl,
        limit_s: float,
        overstayed: Callable[[Message], None],
    ) -> None:
        """Use `threads`, which are shared with other handlers; a call may take `limit_s`.

        `overstayed` gets the messages for whose calls the worker is killed.
        """
        self._threads = threads
        self._control = control
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._overstayed = overstayed
        self._began: dict[_Call, float] = {}

    @property
    def oldest_s(self) -> float:
        """When the call that runs longest began, by `time.monotonic`; infinity when none runs."""
        return min(self._began.copy().values(), default=inf)

    @property
    def running(self) -> int:
        """How many calls run, including those that were given up."""
        return len(self._began)

    def charge_overdue(self) -> None:
        """Charge the messages of calls that only the end of this process can end.

        Of a batch, the culprit is not known.
        """
        overdue_s = monotonic() - self._limit_s - CANCEL_GRACE_S
        for call, began_s in self._began.copy().items():
            if began_s < overdue_s and not call.charged:
                call.charged = True
                if len(call.messages) == 1:
                    self._overstayed(call.messages[0])

    async def run(self, function: Callable[[Any], Any], argument: Any, began: Callable[[float], None]) -> Any:
        """Call `function` in the first free thread, which reports to `began` when that is; return its result.

        While the pool is paused, it is not called. Raises HeldBackError when the worker stops meanwhile.
        """
        # A call that was given up goes on, while its runner has the next message in hand.
        runner = in_hand.get()
        context, call = copy_context(), _Call(runner.messages if runner else ())
        context.run(in_hand.set, Held(call.messages))

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
