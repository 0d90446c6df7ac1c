"""The arbiter's loop: file descriptors, signals and timers in one thread; nothing in it blocks.

It is not asyncio on purpose: a forked child inherits the state of an asyncio loop (on CPython 3.11 a
signal sent to the child then fires in the parent, cpython#94454).
"""

import contextlib
import ctypes
import heapq
import itertools
import os
import selectors
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterable

#: The longest sleep.
SLEEP_S_MAX = 1.0
#: Ctrl-C and Ctrl-\\.
_KEYS = (signal.SIGINT, signal.SIGQUIT)
#: linux/signalfd.h: a signal's number, an unused field and its code, and the size of the whole.
_SIGNAL_INFO = struct.Struct("Iii")
_SIGNAL_INFO_BYTES = 128
#: The C library's sigset_t.
_SIGNAL_SET_BYTES = 128


class Timer:
    """A callback that is due at a time, unless it is cancelled."""

    __slots__ = ("callback", "cancelled", "due_s")

    def __init__(self, due_s: float, callback: Callable[[], None]) -> None:
        self.due_s = due_s
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Prevent the call."""
        self.cancelled = True


class Loop:
    """Watches descriptors, keeps timers, dispatches signals."""

    def __init__(self, on_error: Callable[[Exception], None]) -> None:
        """Creates the selector and the wakeup pipe. `on_error` is called with exceptions from callbacks."""
        self._on_error = on_error
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._stopped = False
        self._signals: dict[int, Callable[[], None]] = {}
        #: Signals that count only if a process has sent them.
        self._sent: dict[int, Callable[[], None]] = {}
        self._signal_fd = -1
        self._wakeup_read, self._wakeup_write = os.pipe()
        os.set_blocking(self._wakeup_read, False)
        os.set_blocking(self._wakeup_write, False)
        self.watch(self._wakeup_read, selectors.EVENT_READ, lambda _events: None)  # `run` reads it after each wait

    def fds(self) -> list[int]:
        """Return the loop's own descriptors; a forked child closes them."""
        own = [self._wakeup_read, self._wakeup_write, *([self._signal_fd] if self._signal_fd >= 0 else [])]
        fileno = getattr(self._selector, "fileno", None)
        return [*own, fileno()] if fileno else own

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback` with the events of `fd`; watching again replaces both."""
        try:
            self._selector.modify(fd, events, callback)
        except KeyError:
            self._selector.register(fd, events, callback)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`; must be called before it is closed."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    def call_at(self, due_s: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` at a monotonic time in seconds."""
        timer = Timer(due_s, callback)
        heapq.heappush(self._timers, (due_s, next(self._count), timer))
        return timer

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call `callback` from the loop for each signal of this number.

        If it was ignored at the start, SIGHUP stays ignored (nohup), and the terminal's keys have no effect: a shell
        has programs in its background ignore them.
        """
        if signal.getsignal(number) is signal.SIG_IGN and number in (signal.SIGHUP, *_KEYS):
            if number in _KEYS:
                self.on_sent_signal(number, callback)
            return
        self._signals[number] = callback
        signal.signal(number, _ignore)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)

    def on_sent_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call `callback` for each signal of this number that a process has sent, and for none of a terminal.

        The signal is blocked for that. A blocked SIGTTOU also lets this process write to a terminal from its
        background; with a handler, the write would be interrupted without end.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        self._sent[number] = callback
        fd = _signal_fd(self._signal_fd, self._sent)
        if fd >= 0 and self._signal_fd < 0:
            self._signal_fd = fd
            self.watch(fd, selectors.EVENT_READ, self._signals_sent)

    def unblock_signals(self) -> None:
        """Unblock all signals but those of `on_sent_signal`."""
        signal.pthread_sigmask(signal.SIG_SETMASK, list(self._sent))

    def run(self) -> None:
        """Run until `stop` is called."""
        while not self._stopped:
            ready = self._selector.select(self._timeout_s())
            # Handle a stop before the exits that it caused, so that these do not count as crashes. A signal that ends
            # the wait is in the pipe only after it.
            self._dispatch_signals()
            for key, events in ready:
                # An earlier callback may have closed this descriptor, and its number may have been reused.
                if self._selector.get_map().get(key.fd) is key:
                    self._call(key.data, events)
            self._run_timers()

    def stop(self) -> None:
        """End `run` after the current iteration."""
        self._stopped = True

    def close(self) -> None:
        """Close the descriptors and restore the default signal handlers."""
        signal.set_wakeup_fd(-1)
        for number in self._signals:
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)
        if self._signal_fd >= 0:
            os.close(self._signal_fd)

    def _timeout_s(self) -> float:
        while self._timers and self._timers[0][2].cancelled:
            heapq.heappop(self._timers)
        if not self._timers:
            return SLEEP_S_MAX
        return min(SLEEP_S_MAX, max(0.0, self._timers[0][0] - time.monotonic()))

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
            # A failing callback must not end the pool.
            self._on_error(error)

    def take_signals(self) -> list[int]:
        """Return the numbers of signals that have arrived and were not dispatched."""
        try:
            return list(os.read(self._wakeup_read, 4096))
        except BlockingIOError:
            return []

    def _signals_sent(self, _events: int) -> None:
        try:
            data = os.read(self._signal_fd, 32 * _SIGNAL_INFO_BYTES)
        except BlockingIOError:
            return
        for start in range(0, len(data), _SIGNAL_INFO_BYTES):
            number, _, code = _SIGNAL_INFO.unpack_from(data, start)
            if code <= 0:  # SI_USER, SI_QUEUE, SI_TKILL; the kernel's own codes are positive
                self._call(self._sent[number])

    def _dispatch_signals(self) -> None:
        numbers = self.take_signals()
        # Last, for the same reason as in `run`; one call is enough, however many have arrived.
        children = {signal.SIGCHLD} & set(numbers)
        for number in [*(n for n in numbers if n != signal.SIGCHLD), *children]:
            callback = self._signals.get(number)
            if callback is not None:
                self._call(callback)


def _signal_fd(fd: int, numbers: Iterable[int]) -> int:
    """Create a signalfd(2) for these signals, or change the one that exists; -1 where there is none."""
    if sys.platform != "linux":
        return -1
    mask = bytearray(_SIGNAL_SET_BYTES)
    for number in numbers:
        mask[(number - 1) // 8] |= 1 << (number - 1) % 8
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    return int(ctypes.CDLL(None).signalfd(fd, (ctypes.c_char * len(mask)).from_buffer(mask), flags))


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing: the number is in the wakeup pipe."""
