"""What a worker has started of one (stream, group): the fields of a consumer in shared memory.

They outlive the worker: the next one in its slot, and the arbiter, read which messages may have ended it.
"""

from enum import IntEnum

CONSUMER_FIELDS = 16


class ConsumerField(IntEnum):
    """Fields of a consumer: what a worker has started of one (stream, group)."""

    #: `consumer_key(stream, group)`; 0: unused.
    KEY = 0
    #: The highest id whose handler was started, as Unix ms and sequence.
    STARTED_MS = 1
    STARTED_SEQ = 2
    #: The message that runs in isolation after a crash; 0-0: none.
    ISOLATED_MS = 3
    ISOLATED_SEQ = 4
    #: A `MarksOwner`: whose marks the four fields above are.
    OWNER = 5
    #: Since when the worker can't read (0: it can), and the code of the error: ASCII, in two fields.
    CUT_OFF_NS = 8
    CUT_OFF_CODE = 9
    CUT_OFF_CODE_REST = 10
    #: Since when the handler's circuit is open; 0: it is closed.
    CIRCUIT_NS = 11


class MarksOwner(IntEnum):
    """Whose started and isolated ids a consumer's fields hold."""

    #: No worker has read the consumer's pending list since the memory was made: only Redis knows of a predecessor.
    NOBODY = 0
    #: The slot's worker has not read the pending list yet.
    PREDECESSOR = 1
    #: It has read it, and suspects of its predecessor's crash still have to run alone.
    BOTH = 2
    #: All that its predecessor left is sorted out.
    WORKER = 3


class SharedConsumer:
    """The fields of one consumer in one slot."""

    __slots__ = ("_at", "_words")

    def __init__(self, words: memoryview, at: int) -> None:
        self._words = words
        self._at = at

    @property
    def owner(self) -> int:
        """Whose marks these are, a `MarksOwner`."""
        return int(self._words[self._at + ConsumerField.OWNER])

    @owner.setter
    def owner(self, owner: MarksOwner) -> None:
        self._words[self._at + ConsumerField.OWNER] = owner

    def clear(self) -> None:
        """Clear the marks: nothing has run."""
        self.set_isolated(0, 0)
        self.set_started(0, 0)

    def clear_own(self) -> None:
        """Clear the marks of the slot's worker, and keep those of its predecessor."""
        if self.owner >= MarksOwner.BOTH:
            self.set_isolated(0, 0)
        self.note_idle()

    def started(self) -> tuple[int, int]:
        """Return the highest id whose handler any incarnation has started."""
        ms, seq = self._at + ConsumerField.STARTED_MS, self._at + ConsumerField.STARTED_SEQ
        return int(self._words[ms]), int(self._words[seq])

    def set_started(self, ms: int, seq: int) -> None:
        """Record that the handler of this id is about to start; (0, 0): no message is running."""
        self._words[self._at + ConsumerField.STARTED_MS] = ms
        self._words[self._at + ConsumerField.STARTED_SEQ] = seq

    def raise_started(self, ms: int, seq: int) -> None:
        """Record that the handlers of ids up to this one are about to start, unless a higher one is recorded."""
        words, at = self._words, self._at + ConsumerField.STARTED_MS
        if ms > words[at] or (ms == words[at] and seq > words[at + 1]):
            words[at], words[at + 1] = ms, seq

    def note_idle(self) -> None:
        """Record that no message runs, once it is known what a predecessor has started."""
        words, at = self._words, self._at
        if words[at + ConsumerField.OWNER] == MarksOwner.WORKER:
            words[at + ConsumerField.STARTED_MS] = words[at + ConsumerField.STARTED_SEQ] = 0

    def set_cut_off(self, since_ns: int, code: tuple[int, int] = (0, 0)) -> None:
        """Record since when the worker can't read (0: it reads), and the packed code of the error."""
        at = self._at + ConsumerField.CUT_OFF_CODE
        self._words[at], self._words[at + 1] = code
        self._words[self._at + ConsumerField.CUT_OFF_NS] = since_ns

    def set_circuit(self, since_ns: int) -> None:
        """Record since when the handler's circuit is open; 0: it is closed."""
        self._words[self._at + ConsumerField.CIRCUIT_NS] = since_ns

    def isolated(self) -> tuple[int, int] | None:
        """Return the id that runs, or ran when the worker crashed, in isolation."""
        ms, seq = self._at + ConsumerField.ISOLATED_MS, self._at + ConsumerField.ISOLATED_SEQ
        pair = int(self._words[ms]), int(self._words[seq])
        return None if pair == (0, 0) else pair

    def set_isolated(self, ms: int, seq: int) -> None:
        """Mark the id that runs in isolation; (0, 0) removes the mark.

        The mark counts only with its ms, which is stored last, so a process that dies between the two stores
        leaves no wrong mark.
        """
        if ms == 0:
            self._words[self._at + ConsumerField.ISOLATED_MS] = 0
            self._words[self._at + ConsumerField.ISOLATED_SEQ] = 0
            return
        self._words[self._at + ConsumerField.ISOLATED_SEQ] = seq
        self._words[self._at + ConsumerField.ISOLATED_MS] = ms
