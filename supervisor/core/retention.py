"""Decides how long a stream keeps what all its groups have settled, and which group holds back more. Pure.

Entries that are unread or pending in a group stay whatever the limits say; the trim script sees to that. So a group
that is no longer read keeps its stream growing: this is reported and never repaired automatically.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from supervisor.core.ids import parse_id
from supervisor.settings.model import Settings

#: A backlog that comes and goes is not reported.
HELD_S = 60.0
#: Interval between two reports.
HELD_AGAIN_S = 600.0


@dataclass(frozen=True, slots=True)
class Retention:
    """The limits of one stream; 0: no limit."""

    max_age_s: float = 0.0
    max_length: int = 0

    def __bool__(self) -> bool:
        """Return whether there is a limit."""
        return bool(self.max_age_s or self.max_length)


@dataclass(frozen=True, slots=True)
class Unsettled:
    """The oldest entry that a group has not settled."""

    group: str
    id: str
    age_s: float


def retention_of(settings: Settings, stream: str) -> Retention:
    """Return the stream's own limits, where it has any, else those of `[consumer]`."""
    own = settings.stream.get(stream)
    age_s = own.max_age if own is not None else None
    length = own.max_length if own is not None else None
    return Retention(
        max_age_s=settings.consumer.max_age if age_s is None else age_s,
        max_length=settings.consumer.max_length if length is None else length,
    )


def held_by(retention: Retention, length: int, first_id: str, unsettled: Iterable[Unsettled]) -> str | None:
    """Return the group that holds back entries beyond the limits, or None.

    `length` and `first_id` are the stream's.
    """
    oldest = min(unsettled, key=lambda one: parse_id(one.id), default=None)
    if oldest is None or not first_id:
        return None
    too_old = bool(retention.max_age_s) and oldest.age_s > retention.max_age_s
    too_many = bool(retention.max_length) and length > retention.max_length
    at_the_beginning = parse_id(oldest.id) <= parse_id(first_id)
    return oldest.group if too_old or (too_many and at_the_beginning) else None


@dataclass(slots=True)
class HeldBackTimer:
    """Decides when to report that a stream's entries are held back."""

    _since_s: dict[str, float] = field(default_factory=dict)
    _reported_s: dict[str, float] = field(default_factory=dict)

    def held_s(self, stream: str, now_s: float, *, held: bool) -> float | None:
        """Return for how long they have been held back if that is to be reported now, else None."""
        if not held:
            self._since_s.pop(stream, None)
            return None
        since_s = self._since_s.setdefault(stream, now_s)
        if now_s - since_s < HELD_S or now_s - self._reported_s.get(stream, float("-inf")) < HELD_AGAIN_S:
            return None
        self._reported_s[stream] = now_s
        return now_s - since_s
