"""The memory shared by arbiter and children: beats, deadlines, counters, ids of started messages.

1. It is one anonymous memory file, mapped before the first fork: a beat is a store, not a system call.
2. Each field has one writer (the arbiter, the keeper or the slot's worker). Aligned 8-byte stores are
   never torn; readers of several fields must expect a mix of old and new values.
3. It outlives the workers: the arbiter and the next worker can read what a dead worker was doing.

The layout does not depend on the handlers, so an arbiter that execs itself can keep the mapping.
"""

import hashlib
import json
import mmap
from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from enum import IntEnum

from supervisor import shared_figures
from supervisor.memfd import create_memfd
from supervisor.shared_consumer import CONSUMER_FIELDS, ConsumerField, MarksOwner, SharedConsumer
from supervisor.shared_figures import FIGURE_FIELDS, FIGURE_ROWS, FigureField, HandlerFigures

MAGIC = 0x5355505256534F52
SLOTS_MAX = 256
HANDLERS_MAX = 64
#: Two for each handler: the stream's own messages and replayed copies are tracked separately.
CONSUMERS_MAX = 2 * HANDLERS_MAX
FIELD_BYTES = 8
FIELD_MAX = 2**64 - 1
HEADER_FIELDS = 64
SLOT_FIELDS = 80
_NO_CONSUMER = memoryview(bytes(CONSUMER_FIELDS * FIELD_BYTES)).cast("Q")
#: In each slot: its fields, its consumers, its figures.
FIGURES_AT = SLOT_FIELDS + CONSUMERS_MAX * CONSUMER_FIELDS
SLOT_STRIDE = FIGURES_AT + FIGURE_ROWS * FIGURE_FIELDS


class HeaderField(IntEnum):
    """Fields of the header."""

    MAGIC = 0
    VERSION = 1
    #: The start of the arbiter (CLOCK_MONOTONIC).
    START_NS = 4
    #: Not 0: every worker drains.
    SHUTDOWN = 5
    #: Not 0: workers fetch no new messages.
    PAUSED = 6
    #: Not 0: the keeper found another pool's token in this pool's lease. Never reset.
    NAME_TAKEN = 7
    #: The end of the keeper's last cycle and whether Redis answered.
    KEEPER_BEAT_NS = 8
    KEEPER_REDIS_OK = 9
    #: The undelivered messages of all groups as last counted by the keeper, and when (0: never).
    BACKLOG = 10
    BACKLOG_NS = 11
    #: The number of workers that there should be: the slots below this number.
    WORKERS = 12
    #: When the pause began, Unix ms.
    PAUSED_MS = 13
    #: When a process of the pool has last logged an outage of Redis; the others hold their lines back.
    OUTAGE_LOGGED_NS = 14
    #: The relay: end of its last cycle, its RelayState, rows published, rows left, when the oldest was added (Unix ms).
    RELAY_BEAT_NS = 15
    RELAY_STATE = 16
    RELAYED = 17
    OUTBOX_ROWS = 18
    OUTBOX_OLDEST_MS = 19


class SlotField(IntEnum):
    """Fields of a slot. docs/architecture.md has the writer of each."""

    PID = 0
    INCARNATION = 1
    SPAWN_NS = 2
    #: The value of DONE when this incarnation was started.
    DONE_BEFORE = 3
    #: Incremented by the arbiter or the keeper: the worker must read its pending list again.
    RESCAN_PENDING = 4
    #: 1 + the slot that takes over the pending messages; set before a slot is removed. A worker that starts with it
    #: only hands over, because its predecessor could not.
    HANDOVER_TO = 5
    #: When the slot's last process had ended (CLOCK_MONOTONIC); 0: it is the first.
    EXITED_NS = 6

    BEAT_NS = 8
    STATE = 9
    STATE_SINCE_NS = 10
    #: When the current step of work must be finished; 0: no deadline.
    DEADLINE_NS = 11
    READY_NS = 12
    #: The last completed read (also an empty one) and the last confirmed ack.
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
    #: 1 + the exit code that the worker is about to exit with.
    EXIT_CODE = 26
    #: Not 0: the last crash is charged to the suspect that caused it, if that is known, or the suspects run one at a
    #: time. If the process dies now, either the isolated message or none of its messages caused it. Kept when the
    #: process ends, like the consumers' fields.
    ISOLATING = 27

    #: Messages whose handler runs now; IN_FLIGHT has those that wait for their turn, too.
    RUNNING = 28
    #: Not 0: the worker knows that the pool is paused, and starts nothing.
    PAUSED = 29
    #: The number of consumers that can't read, and of those whose circuit is open: see the consumers' fields.
    CUT_OFF = 30
    CIRCUITS_OPEN = 31
    #: Until when plain functions may keep the event loop from beating, by holding Python's lock; 0: none runs.
    THREADS_UNTIL_NS = 32
    #: What the worker lacks, a `core.lacks.Lack`; 0: nothing.
    LACK = 33
    #: How many servers of Redis have not confirmed all that was settled.
    SETTLING = 50
    #: How many commands that ack messages Redis has refused and not carried out since; they are sent again.
    REFUSED = 51

    #: Pipelines that settle messages: the sum of their durations in microseconds, and the first of 14 buckets.
    SETTLE_US = 34
    SETTLE_BUCKETS = 35

    #: Why workers of this slot were started again.
    RESTARTS_EXIT = 56
    RESTARTS_SIGNAL = 57
    RESTARTS_OOM = 58
    RESTARTS_HUNG = 59
    RESTARTS_RECYCLE = 60
    #: Messages that the keeper gave to this slot's worker: a dead host's, and those of a consumer of another program.
    RECLAIMED_HOST = 61
    RECLAIMED_IDLE = 62
    #: Pending messages of the slot's last process: the time from its end to their adoption, in microseconds, and the
    #: first of 14 buckets.
    RECLAIM_DELAY_US = 64
    RECLAIM_DELAY_BUCKETS = 65


class WorkerState(IntEnum):
    """What a worker reports to be doing."""

    BOOT = 0
    ADOPT = 1
    IDLE = 2
    WORK = 3
    WAIT_REDIS = 4
    DRAIN = 5
    #: In the project's `@worker_lifespan`, before its `yield` and after it: it may block there without a beat.
    LIFESPAN_START = 6
    LIFESPAN_END = 7


def fingerprint(shape: object) -> int:
    """Return a 64-bit hash of `shape`, which must be serializable as JSON."""
    text = json.dumps(shape, sort_keys=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


#: Derived from the names and numbers. A field whose meaning changes needs a new name.
LAYOUT_VERSION = fingerprint(
    {
        "sizes": [SLOTS_MAX, HEADER_FIELDS, SLOT_FIELDS, CONSUMERS_MAX, CONSUMER_FIELDS, FIGURE_ROWS, FIGURE_FIELDS],
        "fields": {
            kind.__name__: {field.name: field.value for field in kind}
            for kind in (HeaderField, SlotField, ConsumerField, FigureField, MarksOwner, WorkerState)
        },
    }
)


def consumer_key(stream: str, group: str) -> int:
    """Return a 64-bit hash of (stream, group), never 0."""
    digest = hashlib.blake2b(f"{stream}\0{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


#: Fields that say nothing of the next process in the slot.
_OF_THE_PROCESS = (
    *(SlotField.WAITING, SlotField.EXIT_CODE, SlotField.RUNNING, SlotField.PAUSED, SlotField.CUT_OFF),
    *(SlotField.CIRCUITS_OPEN, SlotField.THREADS_UNTIL_NS, SlotField.LACK, SlotField.SETTLING),
    SlotField.REFUSED,
)


class SharedSlot:
    """The fields of one slot."""

    __slots__ = ("_base", "_words", "slot")

    def __init__(self, words: memoryview, slot: int) -> None:
        self._words = words
        self._base = HEADER_FIELDS + slot * SLOT_STRIDE
        self.slot = slot

    def get(self, field: SlotField) -> int:
        """Return the field's value."""
        return int(self._words[self._base + field])

    def set(self, field: SlotField, value: int) -> None:
        """Store the field atomically."""
        self._words[self._base + field] = value

    def add(self, field: SlotField, amount: int) -> None:
        """Add to the field; only for its one writer. Wraps around instead of raising if it holds garbage."""
        self._words[self._base + field] = (self._words[self._base + field] + amount) & FIELD_MAX

    def observe(self, total: SlotField, bounds_s: Sequence[float], duration_s: float, count: int = 1) -> None:
        """Add durations to a histogram: its sum in microseconds is the field `total`, its buckets follow."""
        self.add(total, int(duration_s * 1e6) * count)
        bucket = self._base + total + 1 + bisect_left(bounds_s, duration_s)
        self._words[bucket] = (self._words[bucket] + count) & FIELD_MAX

    def histogram(self, total: SlotField, bounds_s: Sequence[float]) -> list[int]:
        """Return the sum in microseconds and the counts of all buckets."""
        at = self._base + total
        fields: list[int] = self._words[at : at + len(bounds_s) + 2].tolist()
        return fields

    def reset_for_new_worker(self) -> None:
        """Reset the fields of the last incarnation, before the fork.

        Counters continue, and the consumers' fields stay: they tell the new worker what the dead one had started.
        """
        for field in range(SlotField.BEAT_NS, SlotField.IN_FLIGHT + 1):
            self._words[self._base + field] = 0
        for field in _OF_THE_PROCESS:
            self._words[self._base + field] = 0
        for at in self._consumers():
            for index in range(at + ConsumerField.CUT_OFF_NS, at + ConsumerField.CIRCUIT_NS + 1):
                self._words[index] = 0
            if self._words[at + ConsumerField.OWNER]:
                self._words[at + ConsumerField.OWNER] = MarksOwner.PREDECESSOR

    def clear_started(self) -> None:
        """Clear what the last worker has marked, because no message caused it to exit.

        What its predecessor may have crashed with stays suspected, unless it has run alone since then.
        """
        for at in self._consumers():
            SharedConsumer(self._words, at).clear_own()
        if not self.last_started():
            self.set(SlotField.ISOLATING, 0)

    def keep_consumers(self, consumers: Iterable[tuple[str, str]]) -> None:
        """Free the consumers that are not in `consumers`, because their handlers no longer exist."""
        keys = {consumer_key(stream, group) for stream, group in consumers}
        for at in self._consumers():
            if self._words[at] not in keys:
                self._words[at : at + CONSUMER_FIELDS] = _NO_CONSUMER
        shared_figures.keep_rows(self._words, self._base + FIGURES_AT, keys)

    def consumer(self, stream: str, group: str) -> SharedConsumer | None:
        """Return the fields of a consumer, allocating them if necessary; None if all are in use."""
        key = consumer_key(stream, group)
        free = None
        for at in self._consumers():
            if self._words[at] == key:
                return SharedConsumer(self._words, at)
            if free is None and self._words[at] == 0:
                free = at
        if free is not None:
            self._words[free] = key
            return SharedConsumer(self._words, free)
        return None

    def figures(self, stream: str, group: str) -> HandlerFigures | None:
        """Return the figures of a handler, allocating them if necessary; None if all are in use."""
        return shared_figures.row_of(self._words, self._base + FIGURES_AT, consumer_key(stream, group))

    def last_started(self) -> list[tuple[int, int]]:
        """Return the isolated ids or else the highest started id of each consumer, without duplicates.

        While a message is isolated, no other one runs. A highest started message may be completed already.
        """
        used = [SharedConsumer(self._words, at) for at in self._consumers() if self._words[at]]
        isolated = [pair for consumer in used if (pair := consumer.isolated())]
        return list(dict.fromkeys(isolated or [pair for consumer in used if (pair := consumer.started()) != (0, 0)]))

    @property
    def has_unfinished(self) -> bool:
        """Whether messages run, or have ended without Redis having confirmed it.

        IN_FLIGHT does not tell: it may be as old as a beat, and counts messages that were only read ahead.
        """
        return bool(self.get(SlotField.SETTLING) or self.last_started())

    def cut_offs_and_circuits(self) -> dict[int, list[int]]:
        """Return the fields from CUT_OFF_NS to CIRCUIT_NS by `consumer_key`, where one of these two is set."""
        by_key = {}
        for at in self._consumers():
            fields = self._words[at + ConsumerField.CUT_OFF_NS : at + ConsumerField.CIRCUIT_NS + 1].tolist()
            if fields[0] or fields[-1]:
                by_key[int(self._words[at])] = fields
        return by_key

    def _consumers(self) -> range:
        """Return the indexes at which the consumers' fields begin."""
        first = self._base + SLOT_FIELDS
        return range(first, first + CONSUMERS_MAX * CONSUMER_FIELDS, CONSUMER_FIELDS)


class SharedState:
    """The whole mapping; created by the arbiter before the first fork."""

    def __init__(self, fd: int | None = None) -> None:
        """Map a new file, or an existing one with `fd`. Raises ValueError if that has another layout."""
        size = (HEADER_FIELDS + SLOTS_MAX * SLOT_STRIDE) * FIELD_BYTES
        fresh = fd is None
        self.fd = create_memfd("shared-state", size) if fd is None else fd
        self._map = mmap.mmap(self.fd, size)
        self._words = memoryview(self._map).cast("Q")
        if fresh:
            self._words[HeaderField.MAGIC] = MAGIC
            self._words[HeaderField.VERSION] = LAYOUT_VERSION
        elif (self._words[HeaderField.MAGIC], self._words[HeaderField.VERSION]) != (MAGIC, LAYOUT_VERSION):
            raise ValueError("not a shared state of this version")

    def get(self, field: HeaderField) -> int:
        """Return a field of the header."""
        return int(self._words[field])

    def set(self, field: HeaderField, value: int) -> None:
        """Store a field of the header."""
        self._words[field] = value

    def total(self, field: SlotField) -> int:
        """Return the sum of a field over all slots."""
        return sum(self._words[HEADER_FIELDS + field : HEADER_FIELDS + SLOTS_MAX * SLOT_STRIDE : SLOT_STRIDE])

    def figures(self, keys: Collection[int]) -> dict[int, list[int]]:
        """Return the figures of handlers by their `consumer_key`, summed over all slots."""
        used = [slot for slot in range(SLOTS_MAX) if self.slot(slot).get(SlotField.SPAWN_NS)]
        firsts = [HEADER_FIELDS + slot * SLOT_STRIDE + FIGURES_AT for slot in used]
        return shared_figures.sums(self._words, firsts, keys)

    def slot(self, slot: int) -> SharedSlot:
        """Return the fields of one slot."""
        return SharedSlot(self._words, slot)
