"""Compares the replies to a producer with what handlers did: lost, unexpected, duplicated, recovered, unseen.

The rules are those of Jepsen's total-queue, which hold only when everything was drained at the end.
An attempt is each message that was tried to publish; it is acknowledged when Redis answered with its
id. An effect is a run of a handler that came to its end; a start is one that began.

1. lost: acknowledged, and neither done nor a dead letter that was planned. Never allowed.
2. unexpected: done, or a dead letter, although it was not published or not planned. Never allowed.
3. recovered: done although its acknowledgement never came. Allowed, and counted.
4. duplicated: effects beyond the first; repeated: starts beyond the first. Allowed up to a bound.

Pure: no clock, no files.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NS_PER_MS = 1_000_000
#: After this long without an overdue message, a later one has another cause.
CALM_MS = 50


@dataclass(frozen=True, slots=True)
class Effect:
    """A handler's start, or its end, with one message, by the monotonic clock."""

    n: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of all messages in one group."""

    attempts: int
    acked: int
    #: How many different messages were done.
    done: int
    lost: tuple[int, ...]
    unexpected: tuple[int, ...]
    #: Message -> how many effects it had beyond the first.
    duplicated: Mapping[int, int]
    #: Message -> how often it was started beyond the first time; planned dead letters are not counted.
    repeated: Mapping[int, int]
    recovered: tuple[int, ...]
    #: Acknowledged, but never even started.
    unseen: tuple[int, ...]
    dead: int
    #: From the acknowledgement to the first effect, of each message that had both, in ms, smallest first.
    waits_ms: tuple[float, ...]

    @property
    def valid(self) -> bool:
        """Whether nothing was lost and nothing was unexpected."""
        return not (self.lost or self.unexpected)

    def wait_ms(self, share: float) -> float:
        """The wait that this share of the messages did not exceed; 0 when there were none."""
        return quantile(self.waits_ms, share)


def check(
    attempts: Mapping[int, int | None],
    starts: Iterable[Effect],
    ends: Sequence[Effect],
    dead: Sequence[int] = (),
    planned: Collection[int] = (),
) -> Verdict:
    """`attempts`: message -> when it was acknowledged, None for never. `dead`: what is on the dead stream.

    `planned` are those that must become dead letters, each exactly once, and must not be done.
    """
    planned = set(planned)
    acked = {n for n, at_ns in attempts.items() if at_ns is not None}
    done = Counter(effect.n for effect in ends)
    begun = Counter(effect.n for effect in starts)
    letters = Counter(dead)
    wanted = acked - planned
    # A message that was given up counts as not done, unless that was planned.
    lost = (wanted - set(done)) | ((acked & planned) - set(letters))
    unplanned = {n for n, count in letters.items() if n not in planned or count > 1}
    unexpected = (set(done) - set(attempts)) | (set(done) & planned) | unplanned
    first = first_effects(ends)
    waits = (max(0, first[n] - at_ns) / NS_PER_MS for n, at_ns in attempts.items() if at_ns is not None and n in first)
    return Verdict(
        attempts=len(attempts),
        acked=len(acked),
        done=len(done),
        lost=tuple(sorted(lost)),
        unexpected=tuple(sorted(unexpected)),
        duplicated={n: count - 1 for n, count in done.items() if count > 1 and n in attempts},
        repeated={n: count - 1 for n, count in begun.items() if count > 1 and n not in planned},
        recovered=tuple(sorted(n for n in done if n in attempts and n not in acked)),
        unseen=tuple(sorted(acked - set(begun) - set(done) - set(letters))),
        dead=sum(letters.values()),
        waits_ms=tuple(sorted(waits)),
    )


def first_effects(ends: Iterable[Effect]) -> dict[int, int]:
    """Message -> when it was done first, ns."""
    first: dict[int, int] = {}
    for effect in ends:
        first[effect.n] = min(effect.at_ns, first.get(effect.n, effect.at_ns))
    return first


def recovery_ms(
    attempts: Mapping[int, int | None], ends: Iterable[Effect], fault_ns: int, overdue_ms: float,
    planned: Collection[int] = (),
) -> float:  # fmt: skip
    """How long after the fault it took until nothing was overdue any more, in ms.

    A message is overdue when it was acknowledged more than `overdue_ms` ago and is not done. The end
    of the recovery is the first moment, not before `fault_ns` + `overdue_ms`, from which on none is for
    `CALM_MS`: what the fault holds up is overdue by then. 0 when there was nothing to recover from;
    infinite when it never ended.
    """
    overdue_ns = int(overdue_ms * NS_PER_MS)
    first = first_effects(ends)
    late = []
    for n, acked_ns in attempts.items():
        if acked_ns is None or n in planned:
            continue
        done_ns = first.get(n, math.inf)
        if done_ns > acked_ns + overdue_ns:
            late.append((acked_ns + overdue_ns, done_ns))
    began_ns = fault_ns + overdue_ns
    now_ns: float = began_ns
    for since_ns, until_ns in sorted(late):
        if since_ns > now_ns + CALM_MS * NS_PER_MS:
            break
        now_ns = max(now_ns, until_ns)
    return 0.0 if now_ns == began_ns else (now_ns - fault_ns) / NS_PER_MS


def rate_per_s(ends: Iterable[Effect], from_ns: int, to_ns: int) -> float:
    """Effects a second within a stretch of time."""
    count = sum(from_ns <= effect.at_ns < to_ns for effect in ends)
    return count * 1e9 / max(1, to_ns - from_ns)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of an ordered sequence do not exceed; 0 for none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def few(numbers: Sequence[int] | Mapping[int, Any], most: int = 10) -> str:
    """The first few of them, as text for an error."""
    shown = ", ".join(map(str, list(numbers)[:most]))
    return f"{len(numbers)} ({shown}{', ...' if len(numbers) > most else ''})"
