"""A Redis stream with its consumer groups, in memory: what the delivery rules stand on, and no more of Redis.

1. Commands do to it what they do to a server of version 7.0 or later; `test_conformance.py` compares the two.
2. Its clock is whatever the caller says: milliseconds, handed in.
3. Left out, since the supervisor has no use for it: NOACK, LASTID, TIME, RETRYCOUNT, XAUTOCLAIM, approximate trimming.
"""

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass, field

from redis.exceptions import ResponseError

from supervisor.core.ids import parse_id

Id = tuple[int, int]
#: The highest id there can be.
LAST = (2**64 - 1, 2**64 - 1)


def written(entry: Id) -> bytes:
    """As Redis writes it."""
    return b"%d-%d" % entry


@dataclass(slots=True)
class Pending:
    """One entry of a pending list."""

    consumer: bytes
    since_ms: int
    #: Redis's times_delivered.
    times: int


class Sorted(dict[Id, Pending]):
    """A dict that knows the order of its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[Id] = []

    def __setitem__(self, entry: Id, value: Pending) -> None:
        if entry not in self:
            insort(self.order, entry)
        super().__setitem__(entry, value)

    def __delitem__(self, entry: Id) -> None:
        super().__delitem__(entry)
        self.order.remove(entry)

    def between(self, start: Id, end: Id) -> list[Id]:
        """The ids from `start` to `end`, both included."""
        return self.order[bisect_left(self.order, start) : bisect_right(self.order, end)]


@dataclass(slots=True)
class Group:
    """A consumer group."""

    #: The last id that was delivered to any consumer.
    last: Id
    pending: Sorted = field(default_factory=Sorted)
    consumers: set[bytes] = field(default_factory=set)

    def of(self, consumer: bytes) -> list[Id]:
        """What this consumer has pending, in order."""
        return [entry for entry in self.pending.order if self.pending[entry].consumer == consumer]


class Stream:
    """The entries and the groups of one key."""

    def __init__(self, *, eager: bool) -> None:
        """`eager`: a consumer is made by each read and claim (7.2 and later), not only by one that finds something."""
        self.entries: dict[Id, list[bytes]] = {}
        self.last: Id = (0, 0)
        self.groups: dict[bytes, Group] = {}
        self._eager = eager

    def add(self, entry: Id, flat: list[bytes]) -> bytes:
        """XADD with an id."""
        if entry <= self.last:
            raise ResponseError("The ID specified in XADD is equal or smaller than the target stream top item")
        self.entries[entry] = flat
        self.last = entry
        return written(entry)

    def delete(self, ids: list[Id]) -> int:
        """XDEL."""
        return sum(self.entries.pop(entry, None) is not None for entry in ids)

    def trim(self, floor: Id) -> int:
        """XTRIM MINID = `floor`."""
        return self.delete([entry for entry in self.entries if entry < floor])

    def range(self, start: Id, end: Id) -> list[Id]:
        """The ids from `start` to `end`, both included."""
        return [entry for entry in self.entries if start <= entry <= end]  # XADD keeps them in order

    def group(self, name: bytes) -> Group:
        """Raises ResponseError where there is none."""
        if name not in self.groups:
            raise ResponseError(f"NOGROUP No such consumer group {name.decode()!r}")
        return self.groups[name]

    def create_group(self, name: bytes, start: Id) -> None:
        """XGROUP CREATE."""
        if name in self.groups:
            raise ResponseError("BUSYGROUP Consumer Group name already exists")
        self.groups[name] = Group(start)

    def delete_consumer(self, name: bytes, consumer: bytes) -> int:
        """XGROUP DELCONSUMER: throws away what it has pending, and says how much that was."""
        group = self.group(name)
        group.consumers.discard(consumer)
        lost = group.of(consumer)
        for entry in lost:
            del group.pending[entry]
        return len(lost)

    def read_new(self, name: bytes, consumer: bytes, count: int, now_ms: int) -> list[list]:
        """XREADGROUP with `>`: entries, [] when there is none."""
        group = self.group(name)
        if self._eager:
            group.consumers.add(consumer)
        after = group.last
        found = [entry for entry in self.entries if entry > after][: count or None]
        for entry in found:
            group.consumers.add(consumer)
            group.pending[entry] = Pending(consumer, now_ms, 1)
            group.last = entry
        return [[written(entry), self.entries[entry]] for entry in found]

    def read_own(self, name: bytes, consumer: bytes, after: Id, count: int, now_ms: int) -> list[list]:
        """XREADGROUP with an id: counts each once more, but for those whose entry is gone."""
        group = self.group(name)
        group.consumers.add(consumer)
        found = [entry for entry in group.of(consumer) if entry > after][: count or None]
        for entry in found:
            if entry in self.entries:
                group.pending[entry].since_ms = now_ms
                group.pending[entry].times += 1
        return [[written(entry), self.entries.get(entry)] for entry in found]

    def ack(self, name: bytes, ids: list[Id]) -> int:
        """XACK, by whoever: it is not fenced."""
        group = self.groups.get(name)
        found = [entry for entry in dict.fromkeys(ids) if group is not None and entry in group.pending]
        for entry in found:
            del group.pending[entry]
        return len(found)

    def claim(
        self, name: bytes, consumer: bytes, ids: list[Id], now_ms: int, *, min_idle_ms: int, **how: object
    ) -> list[Id]:
        """XCLAIM; `how`: `force`, `justid`, `idle_ms`, `times`. The ids that changed hands.

        An entry that is gone is dropped.
        """
        group = self.group(name)
        if self._eager:
            group.consumers.add(consumer)
        claimed = []
        for entry in ids:
            if entry not in self.entries:
                if entry in group.pending:
                    del group.pending[entry]
                continue
            held = group.pending.get(entry)
            if held is None and how.get("force"):
                held = group.pending[entry] = Pending(b"", now_ms, 1)
            elif held is None or now_ms - held.since_ms < min_idle_ms:
                continue
            group.consumers.add(consumer)
            held.consumer = consumer
            held.since_ms = now_ms - int(how.get("idle_ms") or 0)
            held.times = int(how.get("times") or held.times + (not how.get("justid")))
            claimed.append(entry)
        return claimed


def bound(text: bytes, *, end: bool = False) -> Id:
    """A range's bound: `-`, `+`, `ms`, `ms-seq`, `(` before it: not included."""
    if text in (b"-", b"+"):
        return (0, 0) if text == b"-" else LAST
    if text.startswith(b"("):
        ms, seq = bound(text[1:], end=end)
        if end:
            return (ms, seq - 1) if seq else (ms - 1, LAST[1])
        return (ms, seq + 1)
    if b"-" in text:
        return parse_id(text)
    return (int(text), LAST[1] if end else 0)
