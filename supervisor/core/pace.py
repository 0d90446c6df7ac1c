"""How much a worker may read: the adaptive COUNT, and whether to read ahead. Pure.

What a worker holds beyond what runs is at most what it finishes within `hold_s` at its present pace,
else one worker takes a backlog of slow messages while the others look on. Pace is how long a message
holds the event loop (or a pool thread), not how long its handler takes: a hundred handlers that await
run at once, a hundred that block run one after another.
"""

from dataclasses import dataclass

#: A message that holds the loop longer than this share of `hold_s` is slow, and ends reading ahead.
SLOW_SHARE = 0.1
#: Reads on the wire while the backlog is deep and batches are quick, so that the server never waits for the next one.
READS_MAX = 2
#: A slow message is forgotten after this many quick ones: where one in ten is slow, the next one comes soon.
FORGOTTEN_AFTER = 100
_SMOOTHING = 0.3


@dataclass(slots=True)
class Pace:
    """COUNT for the next read. Starts at 1, doubles while batches are quick, shrinks at once."""

    hold_s: float
    batch_size: int
    count: int = 1
    read_ahead: bool = False
    #: Smoothed time that one message holds the loop.
    per_message_s: float = 0.0
    #: The longest hold of the last slow messages, 0 when they are forgotten.
    slow_s: float = 0.0
    _quick: int = 0
    #: What a read may ask for after a reply was lost; 0: as much as pace allows.
    _limit: int = 0

    def observe(self, ran: int, busy_s: float, slowest_s: float) -> None:
        """Adapt to `ran` messages that held the loop for `busy_s` in all, and the slowest of them for `slowest_s`."""
        if ran == 0:
            return
        mean_s = busy_s / ran
        self.per_message_s += _SMOOTHING * (mean_s - self.per_message_s) if self.per_message_s else mean_s
        if slowest_s > self.hold_s * SLOW_SHARE:
            self.slow_s, self._quick = max(self.slow_s, slowest_s), 0
            self.per_message_s = max(self.per_message_s, mean_s)
            self.count //= 2
        else:
            self._quick += ran
            if self._quick >= FORGOTTEN_AFTER:
                self.slow_s = 0.0
            self.count *= 2
        self.read_ahead = not self.slow_s
        # Reading ahead holds two batches: the one in hand and the one on the wire.
        fits = self.hold_s / self.slow_s if self.slow_s else self.hold_s / 2 / max(self.per_message_s, 1e-9)
        if self._limit:
            self._limit = 0 if self._limit >= self.batch_size else self._limit + 1
        self.count = max(1, min(self.count, self._limit or self.batch_size, int(fits)))

    @property
    def reads_max(self) -> int:
        """How many reads may be on the wire; more than one only where all that they bring fits into `hold_s`."""
        held_s = (1 + READS_MAX) * self.batch_size * self.per_message_s
        return READS_MAX if self.read_ahead and self.count == self.batch_size and held_s <= self.hold_s else 1

    def came_short(self, got: int) -> None:
        """Note that a read of `count` brought only `got`: without a backlog, the next reads ask for few messages.

        Otherwise the first worker to be served after a quiet time would take a whole burst for itself.
        """
        self.count = max(1, min(self.count, 2 * got))

    def lost(self) -> None:
        """Note that the reply to a read was lost, perhaps for its length: ask for half as much, then slowly more."""
        self.count = self._limit = max(1, self.count // 2)
