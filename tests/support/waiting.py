"""Waiting for what must become true: a condition, a limit, and a message that says what was seen instead.

Tests never sleep for an event. What is awaited here either happens or fails the test with the last
value (or error) of the condition.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _Watch:
    """One wait: its clock, the last thing seen, and the text when it was in vain."""

    def __init__(self, condition: Callable[[], Any], limit_s: float, what: str) -> None:
        self._condition, self._what = condition, what
        self._limit_s = limit_s
        self._began = time.monotonic()
        self._until = self._began + limit_s
        self._last: object = None

    def pause_s(self) -> float:
        """How long to wait before the next look: a twentieth of the time so far."""
        return min(0.05, max(0.005, 0.05 * (time.monotonic() - self._began)))

    def saw(self, value: object) -> None:
        self._last = value
        if time.monotonic() >= self._until:
            seen = f"raised {value!r}" if isinstance(value, BaseException) else f"was {value!r}"
            what = self._what or _text(self._condition)
            raise AssertionError(f"not within {self._limit_s:g} s: {what} (at last it {seen})")


def eventually(condition: Callable[[], T], limit_s: float = 30.0, interval_s: float | None = None, what: str = "") -> T:
    """Call `condition` until it returns something true, and return that.

    Exceptions count as "not yet". Raises AssertionError after `limit_s`. Without `interval_s` it is called ever more
    seldom, from each 5 ms to each 50.
    """
    watch = _Watch(condition, limit_s, what)
    while True:
        try:
            value = condition()
        except Exception as error:
            watch.saw(error)
        else:
            if value:
                return value
            watch.saw(value)
        time.sleep(watch.pause_s() if interval_s is None else interval_s)


async def eventually_async(
    condition: Callable[[], T | Awaitable[T]], limit_s: float = 30.0, interval_s: float | None = None, what: str = ""
) -> T:
    """The same on an event loop; `condition` may be a plain or an async function."""
    watch = _Watch(condition, limit_s, what)
    while True:
        try:
            found = condition()
            value: Any = await found if inspect.isawaitable(found) else found
        except Exception as error:
            watch.saw(error)
        else:
            if value:
                return value  # type: ignore[no-any-return]
            watch.saw(value)
        await asyncio.sleep(watch.pause_s() if interval_s is None else interval_s)


async def next_ms(redis: Any) -> None:
    """Wait until the server's clock shows a later millisecond, so that what comes next is later by its records too."""

    async def now_ms() -> int:
        seconds, microseconds = await redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    before_ms = await now_ms()
    while await now_ms() == before_ms:
        await asyncio.sleep(0)


def _text(condition: Callable[[], Any]) -> str:
    try:
        return " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        return repr(condition)
