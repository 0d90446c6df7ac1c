"""The shared mapping of arbiter and workers: beats, deadlines, counters, the ids in hand.

1. One anonymous memory file, mapped before the first fork: a beat is a store, no system call.
2. Each word has one writer (the arbiter, the keeper or the slot's worker). Aligned 8-byte stores are
   never torn; what needs several words is read with that in mind.
3. It outlives the worker: what a dead one was doing is still there for the arbiter and its successor.

The layout is the same whatever handlers there are, so that an arbiter that re-executes itself can go
on with the mapping of its predecessor.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from enum import IntEnum
from typing import TYPE_CHECKING

from supervisor.memfd import create_memfd

if TYPE_CHECKING:
    from collections.abc import Iterable

MAGIC = 0x5355505256534F52
SLOTS_MAX = 256
HANDLERS_MAX = 64
#: Beside the stream's own messages a handler may have copies of replayed ones in hand, which are marked apart.
CONSUMERS_MAX = 2 * HANDLERS_MAX
FIELD_BYTES = 8
FIELD_MAX = 2**64 - 1
HEADER_FIELDS = 64
SLOT_FIELDS = 64
CONSUMER_FIELDS = 8
SLOT_STRIDE = SLOT_FIELDS + CONSUMERS_MAX * CONSUMER_FIELDS


class HeaderField(IntEnum):
    """Words of the header."""

    MAGIC = 0
    VERSION = 1
    #: The time of the arbiter's start (CLOCK_MONOTONIC).
    START_NS = 4
    #: Not 0: every child shall drain.
    SHUTDOWN = 5
    #: Not 0: workers take nothing new.
    PAUSED = 6
    #: Not 0: the keeper has found another pool's token in this pool's lease. Never taken back.
    NAME_TAKEN = 7
    #: The keeper's last finished turn and whether Redis answered it.
    KEEPER_BEAT_NS = 8
    KEEPER_REDIS_OK = 9
    #: What the keeper last counted as not yet delivered, over all groups, and when (0: never).
    BACKLOG = 10
    BACKLOG_NS = 11
    #: How many workers there shall be: the slots below this number.
    WORKERS = 12


class SlotField(IntEnum):
    """Words of a slot. The first eight are the arbiter's, the others the worker's."""

    PID = 0
    INCARNATION = 1
    SPAWN_NS = 2
    #: DONE when this incarnation was started.
    DONE_BEFORE = 3
    #: Raised by the arbiter or the keeper: read your own pending list again.
    RESCAN_PENDING = 4
    #: Set before a slot is drained for good: 1 + the slot that inherits what it still has. A worker that finds
    #: it set when it starts only hands over: its predecessor could not.
    HANDOVER_TO = 5

    BEAT_NS = 8
    STATE = 9
    STATE_SINCE_NS = 10
    #: When the stretch of work that was begun must be over; 0: none.
    DEADLINE_NS = 11
    READY_NS = 12
    #: The last finished read (an empty one counts) and the last confirmed ack.
    FETCH_NS = 13
    SETTLE_NS = 14
    LOOP_LAG_NS_MAX = 15

    IN_FLIGHT = 16
    DONE = 17
    FAILED = 18
    DEAD = 19
    WAITING = 20
    LOST_CLAIM = 21
    TRIMMED = 22
    RECONNECTS = 23
    BATCHES = 24
    ADOPTED = 25
    #: 1 + the exit code with which the worker is about to leave.
    EXIT_CODE = 26
    #: Not 0: suspects of a crash run one at a time; what ends the process now is marked as running alone, or is none
    #: of its messages. Outlives the process, as the rows do.
    ISOLATING = 27


class ConsumerField(IntEnum):
    """Words of a consumer's row: what a worker has in hand of one (stream, group)."""

    #: `consumer_key(stream, group)`; 0: the row is free.
    KEY = 0
    #: The highest id of which the handler was started, as Unix ms and sequence.
    STARTED_MS = 1
    STARTED_SEQ = 2
    #: The message that runs alone after a crash; 0-0: none.
    ISOLATED_MS = 3
    ISOLATED_SEQ = 4


class WorkerState(IntEnum):
    """What a worker says that it does."""

    BOOT = 0
    ADOPT = 1
    IDLE = 2
    WORK = 3
    WAIT_REDIS = 4
    DRAIN = 5


def fingerprint(shape: object) -> int:
    """A 64-bit number for what `shape` lists, as JSON; another list has another."""
    text = json.dumps(shape, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


#: Derived, so that nobody has to remember to raise it. A word that comes to mean something else gets another name.
LAYOUT_VERSION = fingerprint(
    {
        "sizes": [SLOTS_MAX, CONSUMERS_MAX, FIELD_BYTES, HEADER_FIELDS, SLOT_FIELDS, CONSUMER_FIELDS],
        "words": {
            kind.__name__: {word.name: word.value for word in kind}
            for kind in (HeaderField, SlotField, ConsumerField, WorkerState)
        },
    }
)


def consumer_key(stream: str, group: str) -> int:
    """A 64-bit name for (stream, group), never 0."""
    digest = hashlib.blake2b(f"{stream}\0{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


class SharedSlot:
    """The words of one slot."""

    __slots__ = ("_base", "_words", "slot")

    def __init__(self, words: memoryview, slot: int) -> None:
        self._words = words
        self._base = HEADER_FIELDS + slot * SLOT_STRIDE
        self.slot = slot

    def get(self, word: SlotField) -> int:
        """The word's value."""
        return int(self._words[self._base + word])

    def set(self, word: SlotField, value: int) -> None:
        """Store the word in one go."""
        self._words[self._base + word] = value

    def add(self, word: SlotField, amount: int) -> None:
        """Count; only for the word's one writer. One that was scribbled over may wrap round; it must not raise."""
        self._words[self._base + word] = (self._words[self._base + word] + amount) & FIELD_MAX

    def reset_for_new_worker(self) -> None:
        """What the arbiter does before it forks: a new incarnation starts with fresh words.

        Counters go on, and the rows stay: they tell the new worker what the dead one had in hand.
        """
        for word in range(SlotField.BEAT_NS, SlotField.IN_FLIGHT + 1):
            self._words[self._base + word] = 0
        for word in (SlotField.WAITING, SlotField.EXIT_CODE):
            self._words[self._base + word] = 0

    def clear_started(self) -> None:
        """Nothing that was in hand is to be suspected: its worker has left, or was ended, for another reason."""
        self.set(SlotField.ISOLATING, 0)
        for index in range(CONSUMERS_MAX):
            at = self._base + SLOT_FIELDS + index * CONSUMER_FIELDS
            for word in (
                ConsumerField.STARTED_MS,
                ConsumerField.STARTED_SEQ,
                ConsumerField.ISOLATED_MS,
                ConsumerField.ISOLATED_SEQ,
            ):
                self._words[at + word] = 0

    def keep_consumers(self, consumers: Iterable[tuple[str, str]]) -> None:
        """Free the rows of all but these (stream, group): of handlers that are no more, or of nobody at all."""
        keys = {consumer_key(stream, group) for stream, group in consumers}
        for index in range(CONSUMERS_MAX):
            at = self._base + SLOT_FIELDS + index * CONSUMER_FIELDS
            if self._words[at] not in keys:
                for word in range(at, at + CONSUMER_FIELDS):
                    self._words[word] = 0

    def consumer(self, stream: str, group: str) -> SharedConsumer | None:
        """The row of a consumer, taken if it has none yet; None when all rows are in use."""
        key = consumer_key(stream, group)
        free = None
        for index in range(CONSUMERS_MAX):
            at = self._base + SLOT_FIELDS + index * CONSUMER_FIELDS
            if self._words[at] == key:
                return SharedConsumer(self._words, at)
            if free is None and self._words[at] == 0:
                free = at
        if free is not None:
            self._words[free] = key
            return SharedConsumer(self._words, free)
        return None

    def last_started(self) -> list[tuple[int, int]]:
        """The ids that run alone, or else the highest that were started, of each consumer; each id once.

        Where something runs alone, nothing else is in hand. A highest one may be done: its row keeps it.
        """
        places = [self._base + SLOT_FIELDS + index * CONSUMER_FIELDS for index in range(CONSUMERS_MAX)]
        rows = [SharedConsumer(self._words, at) for at in places if self._words[at]]
        alone = [pair for row in rows if (pair := row.isolated())]
        return list(dict.fromkeys(alone or [pair for row in rows if (pair := row.started()) != (0, 0)]))


class SharedConsumer:
    """The words of one consumer in one slot."""

    __slots__ = ("_at", "_words")

    def __init__(self, words: memoryview, at: int) -> None:
        self._words = words
        self._at = at

    def free(self) -> None:
        """Nobody needs the row any more."""
        for word in range(CONSUMER_FIELDS):
            self._words[self._at + word] = 0

    def started(self) -> tuple[int, int]:
        """The highest id whose handler was started by any incarnation."""
        return int(self._words[self._at + ConsumerField.STARTED_MS]), int(
            self._words[self._at + ConsumerField.STARTED_SEQ]
        )

    def set_started(self, ms: int, seq: int) -> None:
        """Say, before the call, that the handler of this id starts; (0, 0): nothing is in hand."""
        self._words[self._at + ConsumerField.STARTED_MS] = ms
        self._words[self._at + ConsumerField.STARTED_SEQ] = seq

    def isolated(self) -> tuple[int, int] | None:
        """The id that runs, or ran at a crash, with nothing else in hand."""
        pair = (
            int(self._words[self._at + ConsumerField.ISOLATED_MS]),
            int(self._words[self._at + ConsumerField.ISOLATED_SEQ]),
        )
        return None if pair == (0, 0) else pair

    def set_isolated(self, ms: int, seq: int) -> None:
        """Mark the id that runs alone; (0, 0) takes the mark away.

        The sequence goes first and the mark counts only with its ms, so a process that dies between
        the two stores leaves no wrong mark.
        """
        if ms == 0:
            self._words[self._at + ConsumerField.ISOLATED_MS] = 0
            self._words[self._at + ConsumerField.ISOLATED_SEQ] = 0
            return
        self._words[self._at + ConsumerField.ISOLATED_SEQ] = seq
        self._words[self._at + ConsumerField.ISOLATED_MS] = ms


class SharedState:
    """The whole mapping. Create it in the arbiter before the first fork."""

    def __init__(self, fd: int | None = None) -> None:
        """Map a new file, or with `fd` the one of a predecessor (raises ValueError if it is none)."""
        size = (HEADER_FIELDS + SLOTS_MAX * SLOT_STRIDE) * FIELD_BYTES
        fresh = fd is None
        self.fd = create_memfd("shared-state") if fd is None else fd
        if fresh:
            os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        self._words = memoryview(self._map).cast("Q")
        if fresh:
            self._words[HeaderField.MAGIC] = MAGIC
            self._words[HeaderField.VERSION] = LAYOUT_VERSION
        elif (self._words[HeaderField.MAGIC], self._words[HeaderField.VERSION]) != (MAGIC, LAYOUT_VERSION):
            raise ValueError("this is no shared, or one of another version")

    def get(self, word: HeaderField) -> int:
        """A word of the header."""
        return int(self._words[word])

    def set(self, word: HeaderField, value: int) -> None:
        """Store a word of the header."""
        self._words[word] = value

    def total(self, word: SlotField) -> int:
        """The sum of the word over all slots."""
        return sum(self.slot(slot).get(word) for slot in range(SLOTS_MAX))

    def slot(self, slot: int) -> SharedSlot:
        """The words of one slot."""
        return SharedSlot(self._words, slot)
