"""Event loops without I/O, in a time of their own: one loop for each process, run one callback at a time from outside.

So a history is the same each time it is played, and a process can be ended between any two callbacks.
"""

import asyncio
import contextlib
import heapq
import random
import warnings
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

#: A thread is found within this time.
_THREAD_S_MAX = 0.01


class Clock:
    """The only time there is. It stands in for the module `time`."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    @property
    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def time(self) -> float:
        return self.now_s

    monotonic = time

    def monotonic_ns(self) -> int:
        return int(self.now_s * 1e9)


class Loop(asyncio.AbstractEventLoop):
    """What asyncio and the product ask of a loop."""

    def __init__(self, clock: Clock, chance: random.Random) -> None:
        self._clock = clock
        self._chance = chance
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = count()
        self.signals: dict[int, Callable[[], object]] = {}

    # From outside

    @property
    def is_ready(self) -> bool:
        """There is something to do now."""
        return bool(self._ready) or self.next_s <= self._clock.now_s

    @property
    def next_s(self) -> float:
        """When the first timer is due; infinity without one."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else float("inf")

    def step(self) -> None:
        """Run the next callback."""
        while self.next_s <= self._clock.now_s:
            self._ready.append(heapq.heappop(self._timers)[2])
        handle = self._ready.popleft()
        if handle.cancelled():
            return
        asyncio._set_running_loop(self)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(None)

    def bury(self) -> None:
        """Have its tasks end, whatever they say; their process is gone."""
        asyncio._set_running_loop(self)
        try:
            for task in asyncio.all_tasks(self):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException), warnings.catch_warnings(action="ignore"):  # some never ran
                    task.get_coro().close()  # type: ignore[union-attr]
        finally:
            asyncio._set_running_loop(None)

    # For asyncio

    def time(self) -> float:
        return self._clock.now_s

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], *, name: Any = None, context: Any = None) -> Any:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def run_in_executor(self, _executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """The thread's work is one callback."""
        future = self.create_future()

        def work() -> None:
            if future.done():
                return
            try:
                result = func(*args)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(self._chance.random() * _THREAD_S_MAX, work)
        return future

    def add_signal_handler(self, sig: int, callback: Any, *_: Any) -> None:
        self.signals[sig] = callback

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if "handle" in context:  # a callback has raised, which no process survives for long
            raise context["exception"]

    def get_debug(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when it is due."""
