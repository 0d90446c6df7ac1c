"""The commands for sorted sets and sets of the server in memory, as far as the supervisor sends them."""

from math import inf

Bound = tuple[float, bool]


class SetCommands:
    """All sorted sets and sets. One without members does not exist."""

    def __init__(self) -> None:
        #: Member -> score.
        self.sorted_sets: dict[bytes, dict[bytes, float]] = {}
        self.sets: dict[bytes, set[bytes]] = {}

    def ordered(self, key: bytes) -> list[tuple[float, bytes]]:
        """Score and member of all, in the set's order."""
        return sorted((score, member) for member, score in self.sorted_sets.get(key, {}).items())

    def cmd_zadd(self, key: bytes, *words: bytes) -> int:
        at = next(at for at, word in enumerate(words) if word not in (b"NX", b"XX"))
        held = self.sorted_sets.get(key, {})
        before = len(held)
        for score, member in zip(words[at::2], words[at + 1 :: 2], strict=True):
            if (b"NX" in words[:at] and member in held) or (b"XX" in words[:at] and member not in held):
                continue
            held[member] = float(score)
        if held:
            self.sorted_sets[key] = held
        return len(held) - before

    def cmd_zrem(self, key: bytes, *members: bytes) -> int:
        held = self.sorted_sets.get(key, {})
        removed = sum(held.pop(member, None) is not None for member in members)
        if not held:
            self.sorted_sets.pop(key, None)
        return removed

    def cmd_zremrangebyrank(self, key: bytes, start: bytes, stop: bytes) -> int:
        return self.cmd_zrem(key, *self.cmd_zrange(key, start, stop))

    def cmd_zcard(self, key: bytes) -> int:
        return len(self.sorted_sets.get(key, {}))

    def cmd_zscore(self, key: bytes, member: bytes) -> bytes | None:
        score = self.sorted_sets.get(key, {}).get(member)
        return None if score is None else _text(score)

    def cmd_zrank(self, key: bytes, member: bytes) -> int | None:
        members = [found for _, found in self.ordered(key)]
        return members.index(member) if member in members else None

    def cmd_zcount(self, key: bytes, low: bytes, high: bytes) -> int:
        return len(self._between(key, low, high))

    def cmd_zrange(self, key: bytes, start: bytes, stop: bytes, *how: bytes) -> list[bytes]:
        rows = self.ordered(key)
        first, last = (int(at) + len(rows) * (int(at) < 0) for at in (start, stop))
        return _rows(rows[max(0, first) : max(0, last + 1)], how)

    def cmd_zrangebyscore(self, key: bytes, low: bytes, high: bytes, *how: bytes) -> list[bytes]:
        rows = self._between(key, low, high)
        if b"LIMIT" in how:
            at = how.index(b"LIMIT")
            offset, count = int(how[at + 1]), int(how[at + 2])
            rows = rows[offset:] if count < 0 else rows[offset : offset + count]
        return _rows(rows, how)

    def cmd_sadd(self, key: bytes, *members: bytes) -> int:
        held = self.sets.setdefault(key, set())
        before = len(held)
        held.update(members)
        return len(held) - before

    def cmd_srem(self, key: bytes, *members: bytes) -> int:
        held = self.sets.get(key, set())
        before = len(held)
        held.difference_update(members)
        if not held:
            self.sets.pop(key, None)
        return before - len(held)

    def cmd_srandmember(self, key: bytes, count: bytes) -> list[bytes]:
        """The first ones: a history is the same each time."""
        return sorted(self.sets.get(key, set()))[: int(count)]

    def _between(self, key: bytes, low: bytes, high: bytes) -> list[tuple[float, bytes]]:
        (lowest, above), (highest, below) = _bound(low), _bound(high)
        return [
            (score, member)
            for score, member in self.ordered(key)
            if (lowest < score if above else lowest <= score) and (score < highest if below else score <= highest)
        ]


def _bound(text: bytes) -> Bound:
    return float(text.removeprefix(b"(")), text.startswith(b"(")


def _rows(rows: list[tuple[float, bytes]], how: tuple[bytes, ...]) -> list[bytes]:
    if b"WITHSCORES" in how:
        return [word for score, member in rows for word in (member, _text(score))]
    return [member for _, member in rows]


def _text(score: float) -> bytes:
    return str(score).encode() if score in (inf, -inf) else f"{score:.17g}".encode()
