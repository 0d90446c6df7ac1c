"""What is known of Redis and the pool, refreshed in the background, so that a request waits for none of it.

1. A snapshot is refreshed from the start of the service; often while requests ask for it and for a minute longer.
2. A machine that gives this process no CPU time must not look like a Redis that failed: a part that could not be
   examined is "too busy to tell", and its last result stays valid.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from supervisor.broker.cancelling import cancel, wait_at_most

T = TypeVar("T")
#: A snapshot is refreshed often for this long after the last request for it, and then every IDLE_S.
DEMAND_S = 60.0
IDLE_S = 5.0
#: A snapshot that is older and can't be refreshed in time is not used.
AGE_S_MAX = 60.0
#: How long a request waits for a snapshot that is due while there is an older one.
WAIT_S = 0.05
TOO_BUSY = "too busy to tell"
NO_ANSWER = "no answer in time"
_TICK_S = 0.02
#: A loop that makes fewer of its ticks lacks CPU time.
_TICKS_SHARE = 0.6
#: The share of time in which some process of the machine waits for a CPU that makes the machine busy, in percent.
_PRESSURE_MIN = 40.0
#: How long a part may be silent on a busy machine before it counts as failed.
_PRESSED_PATIENCE_S = 5.0


class Snapshot(Generic[T]):
    """The latest result of `fetch`, which gets the result before it."""

    def __init__(self, fetch: Callable[[T | None], Awaitable[T]], *, every_s: float) -> None:
        """Fetch every `every_s` while requests ask for the result."""
        self._fetch = fetch
        self._every_s = every_s
        self._demand = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._value: T | None = None
        self._taken_s = float("-inf")
        self._wanted_s = float("-inf")
        self._news = asyncio.Event()

    async def get(self, limit_s: float) -> T | None:
        """Return the latest result; None when there is none that is young enough.

        Waits at most `limit_s` for the first one, and at most WAIT_S when there is an older one.
        """
        now_s = time.monotonic()
        self._want(now_s)
        if not self._closed and now_s - self._taken_s > 2 * self._every_s:
            known = now_s - self._taken_s < AGE_S_MAX
            await wait_at_most(min(limit_s, WAIT_S) if known else limit_s, self._news)
        return self._young()

    def peek(self) -> T | None:
        """Return the latest result without waiting; None when there is none that is young enough."""
        self._want(time.monotonic())
        return self._young()

    def start(self) -> None:
        """Refresh from now on, until it is closed."""
        if not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._refresh())

    async def close(self) -> None:
        """Stop refreshing, and wait for the end of a fetch that is under way."""
        self._closed = True
        if self._task is not None:
            await cancel(self._task)
        self._news.set()  # those who wait get what is known

    def _want(self, now_s: float) -> None:
        self._wanted_s = now_s
        self._demand.set()
        self.start()

    def _young(self) -> T | None:
        return self._value if time.monotonic() - self._taken_s < AGE_S_MAX else None

    async def _refresh(self) -> None:
        while True:
            self._value = await self._fetch(self._value)
            self._taken_s = time.monotonic()
            self._news.set()
            self._news.clear()
            await asyncio.sleep(self._every_s)
            if time.monotonic() - self._wanted_s > DEMAND_S:
                self._demand.clear()
                await wait_at_most(IDLE_S, self._demand)


@dataclass(frozen=True, slots=True)
class PartHealth:
    """What was found out about one part."""

    #: What is wrong; empty: nothing.
    error: str
    #: When it was found out, by `time.monotonic`.
    at_s: float
    #: It answers, but refuses: what does not need that still works.
    refuses: bool = False
    #: Later attempts failed for lack of CPU time.
    busy: bool = False

    @property
    def unknown(self) -> bool:
        """True if nothing was found out at all."""
        return self.error == TOO_BUSY


def judge(before: PartHealth | None, now: PartHealth, *, timed_out: bool, starved: bool, pressed: bool) -> PartHealth:
    """Return what holds after another look.

    `starved`: this process had too little CPU time to receive an answer. `pressed`: the machine is busy, so the
    other side may have had too little.
    """
    if not timed_out:
        return now
    if not starved and before is not None and now.at_s - before.at_s > _PRESSED_PATIENCE_S:
        return now
    if starved or pressed:
        return replace(before, busy=True) if before is not None else replace(now, error=TOO_BUSY, busy=True)
    return now


class LoopWatch:
    """Measures whether the event loop ran during a wait: `with LoopWatch() as watch: ...`."""

    def __init__(self) -> None:
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._began_s = self._ended_s = 0.0

    @property
    def starved(self) -> bool:
        """True if the loop turned much less often than its timers asked for."""
        expected = (self._ended_s - self._began_s) / _TICK_S
        return expected > 1 and self._ticks < expected * _TICKS_SHARE

    def __enter__(self) -> "LoopWatch":
        self._began_s = time.monotonic()
        self._tick()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended_s = time.monotonic()
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._ticks += 1
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)


def is_pressed() -> bool:
    """Return whether processes wait for a CPU most of the time; False where the kernel does not report it."""
    try:
        with open("/proc/pressure/cpu", "rb") as file:
            return float(file.readline().split()[1].partition(b"=")[2]) >= _PRESSURE_MIN
    except (OSError, ValueError, IndexError):
        return False
