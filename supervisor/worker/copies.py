"""Runs replayed messages whose entry was trimmed: a second consumer of a group, as long as it has copies to read.

1. It looks for them when the worker starts and when it is poked, and else costs nothing.
2. Such a consumer lives as every other does, with marks, retries and crashes of its own; what it runs shares the
   handler's concurrency. It ends when nothing is left, and the last one removes the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from supervisor.core.backoff import backoff_s
from supervisor.worker.consumer import Consumer
from supervisor.worker.own import CopiesGoneError, hand_over
from supervisor.worker.settler import Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from typing import Any

_RETRY_BASE_S = 0.1
_RETRY_MAX_S = 2.0
#: How long what was decided may take to be confirmed before it is looked at again as pending.
_CONFIRM_S = 1.0
_WHAT = "can't look for replayed messages"


class Copies:
    """The consumers of copies of one worker."""

    def __init__(self, mains: Sequence[Consumer], *, burst: bool) -> None:
        """`mains`: the consumers of the handlers' own streams."""
        self._mains = mains
        self._burst = burst
        self._wanted = asyncio.Event()
        self._stopping = False
        #: Looked at least once: what a predecessor left is known.
        self.looked = False
        self.consumers: list[Consumer] = []

    def look_again(self) -> None:
        """There may be something to read."""
        self._wanted.set()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping = True
        self._wanted.set()

    async def run(
        self,
        live: Callable[[Consumer], Coroutine[Any, Any, None]],
        start: Callable[[Coroutine[Any, Any, None], str], None],
        looked: Callable[[], None],
    ) -> None:
        """Look until told to stop, in a burst once. `live` is a consumer's life, `start` makes a task."""
        failures = 0
        while not self._stopping:
            self._wanted.clear()
            answers = [await self._look(main, live, start) for main in self._mains]
            if not all(answers):
                failures += 1
                await self._pause(backoff_s(failures, _RETRY_BASE_S, _RETRY_MAX_S, random.random))
                continue
            failures = 0
            self.looked = True
            looked()
            if self._burst:
                return
            await self._wanted.wait()

    async def hand_over(self, heir: str) -> None:
        """What a predecessor left to this consumer's name and nobody has opened goes to `heir`."""
        for main in self._mains:
            # NOGROUP: somebody removes it at this very time. Else a keeper does it when Redis is back.
            with contextlib.suppress(RedisError, OSError):
                if main.copies is None and await _exist(main):
                    await hand_over(main.around.wire, _keys(main), main.around.name, heir)

    async def _look(
        self,
        main: Consumer,
        live: Callable[[Consumer], Coroutine[Any, Any, None]],
        start: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> bool:
        """Whether Redis has answered."""
        try:
            there = main.copies is None and await _exist(main)
        except (RedisError, OSError) as error:
            main.around.faults.redis(_WHAT, error, stream=main.spec.stream)
            return False
        main.around.faults.resolved(_WHAT, stream=main.spec.stream)
        if there and not self._stopping:
            self._open(main)
            start(self._read(main, live), f"copies {main.spec.stream} {main.spec.group}")
        return True

    def _open(self, main: Consumer) -> None:
        """Make the consumer."""
        keys = _keys(main)
        row = main.around.shared.consumer(keys.stream, keys.group)
        assert row is not None, "shared memory has two rows for each handler"
        main.copies = Consumer(main.spec, main.around, row, beside=main)
        main.copies.intake.paused = main.intake.paused
        self.consumers.append(main.copies)

    async def _read(self, main: Consumer, live: Callable[[Consumer], Coroutine[Any, Any, None]]) -> None:
        """From the first copy to the last."""
        while main.copies is not None:
            with contextlib.suppress(CopiesGoneError):
                await live(main.copies)
            if self._stopping:
                return  # it is closed with the others
            more = await self._more(main.copies)
            self.consumers.remove(main.copies)
            main.copies.free_row()
            main.copies = None
            if not more or self._stopping:
                return
            self._open(main)

    async def _more(self, consumer: Consumer) -> bool:
        """Leave the group; whether there is something to do after all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONFIRM_S):
                await consumer.around.settler.flush()
        try:
            said = await consumer.leave_copies()
        except (RedisError, OSError):  # a new one tells of it, waits until Redis is back, and leaves then
            return not self._burst
        return said == "unread" or (said == "held" and not self._burst)

    async def _pause(self, limit_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wanted.wait(), limit_s)


async def _exist(main: Consumer) -> bool:
    return bool(await main.around.wire.call("EXISTS", _keys(main).stream))


def _keys(main: Consumer) -> Keys:
    return Keys.of_copies(main.spec.stream, main.spec.group)
