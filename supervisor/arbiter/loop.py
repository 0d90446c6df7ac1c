"""The arbiter's loop: file descriptors, signals and timers in one thread, and nothing that blocks.

It is no event loop in asyncio's sense, on purpose: a child forked from one inherits its state (on
CPython 3.11 a signal sent to the child then fires in the parent, cpython#94454).
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import selectors
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: It never sleeps longer than this, so that its own tick is fresh.
TURN_S_MAX = 1.0


class Timer:
    """A call that is due at a time, unless it is cancelled."""

    __slots__ = ("callback", "cancelled", "due_s")

    def __init__(self, due_s: float, callback: Callable[[], None]) -> None:
        self.due_s = due_s
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """It will not be called."""
        self.cancelled = True


class Loop:
    """Watches descriptors, keeps timers, hands out signals."""

    def __init__(self, failed: Callable[[Exception], None]) -> None:
        """Makes its selector and its wakeup pipe; takes no signal yet. `failed` hears what callbacks raise."""
        self._failed = failed
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._stopped = False
        self._signals: dict[int, Callable[[], None]] = {}
        self._wakeup_read, self._wakeup_write = os.pipe()
        os.set_blocking(self._wakeup_read, False)
        os.set_blocking(self._wakeup_write, False)
        self.watch(self._wakeup_read, selectors.EVENT_READ, self._woken)

    def fds(self) -> list[int]:
        """The descriptors that are the loop's own; a forked child closes them."""
        own = [self._wakeup_read, self._wakeup_write]
        fileno = getattr(self._selector, "fileno", None)
        return [*own, fileno()] if fileno else own

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events of `fd`; watching again changes the events."""
        try:
            self._selector.modify(fd, events, callback)
        except KeyError:
            self._selector.register(fd, events, callback)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`. Must be called before it is closed."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    def at(self, due_s: float, callback: Callable[[], None]) -> Timer:
        """Call back at a monotonic time in seconds."""
        timer = Timer(due_s, callback)
        heapq.heappush(self._timers, (due_s, next(self._count), timer))
        return timer

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call back, within a turn of the loop, for each signal of this number."""
        self._signals[number] = callback
        signal.signal(number, _noted)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)

    def run(self) -> None:
        """Turn until `stop`."""
        while not self._stopped:
            for key, events in self._selector.select(self._patience_s()):
                # One callback may close the descriptor of the next, whose number then may be another's.
                if self._selector.get_map().get(key.fd) is key:
                    self._call(key.data, events)
            self._run_timers()

    def stop(self) -> None:
        """End `run` after this turn."""
        self._stopped = True

    def close(self) -> None:
        """Give back descriptors and signals."""
        signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)

    def _patience_s(self) -> float:
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        if not self._timers:
            return TURN_S_MAX
        return min(TURN_S_MAX, max(0.0, self._timers[0][0] - time.monotonic()))

    def _run_timers(self) -> None:
        now_s = time.monotonic()
        while self._timers and (self._timers[0][2].cancelled or self._timers[0][0] <= now_s):
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled:
                self._call(timer.callback)

    def _call(self, callback: Callable[..., None], *args: int) -> None:
        try:
            callback(*args)
        except Exception as error:
            # One wrong turn must not cost the pool: the others go on, and the log has the reason.
            self._failed(error)

    def take_signals(self) -> list[int]:
        """The signals that have come and were not handed out."""
        try:
            return list(os.read(self._wakeup_read, 4096))
        except BlockingIOError:
            return []

    def _woken(self, _events: int) -> None:
        numbers = self.take_signals()
        # Children are looked at once, however many signals told of them.
        children = {signal.SIGCHLD} & set(numbers)
        for number in [*children, *(n for n in numbers if n != signal.SIGCHLD)]:
            callback = self._signals.get(number)
            if callback is not None:
                self._call(callback)


def _noted(_number: int, _frame: object) -> None:
    """The wakeup pipe has the number; a handler must do nothing else."""
