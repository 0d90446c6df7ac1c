"""What the workers count for each handler in shared memory: deliveries, outcomes, and two histograms.

Each slot has a row for each (stream, group). Its worker adds to it once for a batch, and once for a message that took
long; the arbiter adds the rows up. Counters continue over the lives of workers.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from enum import IntEnum
from typing import Protocol

#: Upper bounds in seconds; each histogram has one more bucket for what is above the last one.
PROCESS_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
WAIT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 300.0, 3600.0)
#: Bounds for commands to Redis, and for the time from a worker's end to the adoption of its messages: 14 buckets each.
REDIS_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
RECLAIM_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: A message that takes no longer is in the first bucket: it needs no clock reading of its own.
QUICK_S = PROCESS_BOUNDS_S[0]
FIGURE_ROWS = 64
FIGURE_FIELDS = 48
_FIELD_MAX = 2**64 - 1
_FIELD_BYTES = 8


class FigureField(IntEnum):
    """Fields of a row. Only the slot's worker writes them."""

    #: `shared_state.consumer_key(stream, group)`; 0: unused.
    FIGURES_KEY = 0
    #: Messages that were handed to the handler for the first time, and again: retries, replays, taken over.
    DELIVERED = 1
    REDELIVERED = 2
    #: How deliveries were settled.
    SETTLED_DONE = 3
    SETTLED_RETRY = 4
    SETTLED_DEAD = 5
    SETTLED_LOST_CLAIM = 6
    #: Pending messages of the slot's last process, and those that this one handed to another worker when it left.
    RECLAIMED_CHILD_EXIT = 7
    RECLAIMED_DRAIN = 8
    #: Calls of the handler: the sum in microseconds, and the first of 15 buckets.
    PROCESS_US = 9
    PROCESS_BUCKETS = 10
    #: Time from publishing to the first delivery: the sum in milliseconds, and the first of 15 buckets.
    WAIT_MS = 25
    WAIT_BUCKETS = 26


class _Delivered(Protocol):
    entry: bytes


class HandlerFigures:
    """The row of one (stream, group) in one slot."""

    __slots__ = ("_at", "_words")

    def __init__(self, words: memoryview, at: int) -> None:
        self._words = words
        self._at = at

    def add(self, field: FigureField, amount: int = 1) -> None:
        """Add to a field. It wraps around instead of raising if it holds garbage."""
        at = self._at + field
        self._words[at] = (self._words[at] + amount) & _FIELD_MAX

    def get(self, field: FigureField) -> int:
        """Return a field."""
        return int(self._words[self._at + field])

    def ran(self, process_s: float) -> None:
        """Note a call of the handler that took this long."""
        self._observe(FigureField.PROCESS_BUCKETS, bisect_left(PROCESS_BOUNDS_S, process_s), 1)
        self.add(FigureField.PROCESS_US, int(process_s * 1e6))

    def ran_quickly(self, calls: int, process_s: float) -> None:
        """Note calls that took at most QUICK_S each, and `process_s` in all."""
        if calls:
            self._observe(FigureField.PROCESS_BUCKETS, 0, calls)
            self.add(FigureField.PROCESS_US, int(process_s * 1e6))

    def waited(self, messages: Sequence[_Delivered], now_s: float) -> None:
        """Note how long messages have waited that are delivered for the first time, in the order of their ids.

        `now_s` is Unix time; ids have the server's, so waits are as exact as the clocks agree. Messages between two
        that share a bucket are in it too: only the ids around a bound are read.
        """
        if messages:
            self._waited(messages, 0, len(messages) - 1, int(now_s * 1000))

    def _waited(self, messages: Sequence[_Delivered], first: int, last: int, now_ms: int) -> None:
        longest_ms, shortest_ms = _wait_ms(messages[first], now_ms), _wait_ms(messages[last], now_ms)
        bucket = bisect_left(WAIT_BOUNDS_S, longest_ms / 1000)
        if first == last or bucket == bisect_left(WAIT_BOUNDS_S, shortest_ms / 1000):
            count = last - first + 1
            self._observe(FigureField.WAIT_BUCKETS, bucket, count)
            self.add(FigureField.WAIT_MS, (longest_ms + shortest_ms) * count // 2)
            return
        middle = (first + last) // 2
        self._waited(messages, first, middle, now_ms)
        self._waited(messages, middle + 1, last, now_ms)

    def _observe(self, buckets: FigureField, bucket: int, count: int) -> None:
        at = self._at + buckets + bucket
        self._words[at] = (self._words[at] + count) & _FIELD_MAX


def _wait_ms(message: _Delivered, now_ms: int) -> int:
    return max(0, now_ms - int(message.entry.partition(b"-")[0]))


def row_of(words: memoryview, first: int, key: int) -> HandlerFigures | None:
    """Return the row with this key of those that begin at `first`, allocating it; None if all are in use."""
    keys = _keys(words, first)
    index = keys.index(key) if key in keys else keys.index(0) if 0 in keys else None
    if index is None:
        return None
    words[first + index * FIGURE_FIELDS] = key
    return HandlerFigures(words, first + index * FIGURE_FIELDS)


def keep_rows(words: memoryview, first: int, keys: Collection[int]) -> None:
    """Free the rows whose key is not in `keys`."""
    for index, key in enumerate(_keys(words, first)):
        if key and key not in keys:
            at = first + index * FIGURE_FIELDS
            words[at : at + FIGURE_FIELDS] = memoryview(bytes(FIGURE_FIELDS * _FIELD_BYTES)).cast("Q")


def sums(words: memoryview, slots: Iterable[int], keys: Collection[int]) -> dict[int, list[int]]:
    """Return the sums of all rows with these keys; `slots` are the indexes at which the rows of the slots begin."""
    totals: dict[int, int] = {}
    for first in slots:
        for index, key in enumerate(_keys(words, first)):
            if key in keys:
                at = first + index * FIGURE_FIELDS
                # One addition of long numbers adds up all fields: the arbiter may have thousands of rows.
                row = int.from_bytes(words[at + 1 : at + FIGURE_FIELDS].tobytes(), "little")
                totals[key] = totals.get(key, 0) + row
    size = FIGURE_FIELDS * _FIELD_BYTES
    return {
        key: [key, *memoryview(total.to_bytes(size, "little")).cast("Q").tolist()[: FIGURE_FIELDS - 1]]
        for key, total in totals.items()
    }


def _keys(words: memoryview, first: int) -> list[int]:
    keys: list[int] = words[first : first + FIGURE_ROWS * FIGURE_FIELDS : FIGURE_FIELDS].tolist()
    return keys
