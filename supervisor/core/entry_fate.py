"""Determines what became of one entry in each group of its stream, from what Redis holds of it. Pure.

Redis keeps no record of settled entries: an entry that a group has passed and does not hold is done, unless there is
a dead letter of it. When the entry itself is gone, it may also have been deleted unread.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from supervisor.core.ids import parse_id
from supervisor.core.origin import Origin
from supervisor.keys import REPLAY_CONSUMER, TURNS_CONSUMER, WAITING_CONSUMERS


class Presence(StrEnum):
    """Whether the entry is in its stream."""

    STORED = "stored"
    #: Trimmed, deleted, or never there: its id is not after the last one.
    GONE = "gone"
    #: It is a message for later, which is not in the stream yet.
    LATER = "waiting until it is due"
    #: It was a message for later.
    CANCELLED = "cancelled"
    #: No message for later has this id, and none that was published or cancelled lately.
    NO_LATER = "no such message for later"
    #: Its id is after the last one.
    NOT_PUBLISHED = "not published yet"
    #: There is no such stream.
    NO_STREAM = "no such stream"


class Fate(StrEnum):
    """What became of the entry in one group."""

    NO_GROUP = "no such group"
    NOT_DELIVERED = "not delivered yet"
    #: Deleted or trimmed before this group read it.
    NEVER_DELIVERED = "gone before it was delivered"
    #: With a worker: prefetched, or its handler runs.
    IN_HAND = "in hand"
    WAITING = "waiting for a retry"
    #: Others of its key, or of its group, come first.
    WAITING_TURN = "waiting for its turn"
    WAITING_RATE = "waiting for its rate"
    #: Replayed, and no worker has read the copy yet.
    PUT_BACK = "put back"
    DONE = "done"
    DEAD = "dead letter"
    #: Either done or deleted unread.
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class LaterFact:
    """A message for later that is not in its stream."""

    #: None: never, because it is malformed, cancelled or not there.
    due_ms: int | None = None
    cancelled_ms: int | None = None
    #: Why it is malformed.
    error: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """The entry and its stream."""

    stream: str
    #: The entry's id; with `later`, the id of the message for later.
    id: str
    exists: bool
    stored: bool
    #: The ids at the ends of the stream; empty when it holds, or held, nothing.
    first_id: str
    last_id: str
    #: The server's clock.
    now_ms: int
    #: What published it, if not a producer, or that is not known any more.
    origin: Origin | None = None
    later: LaterFact | None = None


@dataclass(frozen=True, slots=True)
class LetterFact:
    """The group's dead letter of the entry."""

    letter_id: str
    reason: str
    deliveries: int
    handler: str
    dead_at_ms: int


@dataclass(frozen=True, slots=True)
class TurnFact:
    """The messages that one message waits for."""

    #: None: it has none, and waits for a turn of the group.
    key: str | None
    #: (id, consumer) of those that run, or are about to; a dead letter that stops the key has the consumer `halted`.
    holders: tuple[tuple[str, str], ...]
    #: Messages that wait before it.
    before: int


@dataclass(frozen=True, slots=True)
class GroupFacts:
    """What Redis holds of the entry for one group."""

    group: str
    #: None: the group does not exist.
    last_delivered: str | None = None
    #: Undelivered entries before it, and whether there may be more.
    before: int = 0
    before_at_least: bool = False
    #: The consumer that holds it; "" when it is not pending.
    consumer: str = ""
    idle_ms: int = 0
    #: That consumer belongs to no pool.
    foreign: bool = False
    #: As Redis counts.
    deliveries: int = 0
    #: From its retry record: failed handler runs, and when the next one is due.
    attempts: int = 0
    next_due_ms: int | None = None
    crashes: int = 0
    #: Where it waits for its turn.
    turn: TurnFact | None = None
    #: (stream, id) of what the handler has published by `Emit`, up to a limit.
    emitted: tuple[tuple[str, str], ...] = ()
    letter: LetterFact | None = None
    #: Dead letters that were not searched.
    letters_left: int = 0


@dataclass(frozen=True, slots=True)
class GroupVerdict:
    """A group's facts and the fate that follows from them."""

    fate: Fate
    facts: GroupFacts

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"group": self.facts.group, "fate": self.fate.value, **asdict(self.facts)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an entry."""

    entry: Entry
    presence: Presence
    groups: tuple[GroupVerdict, ...]

    @property
    def known(self) -> bool:
        """Whether Redis holds the entry or anything about it."""
        held = any(one.facts.consumer or one.facts.letter or one.facts.emitted for one in self.groups)
        there = self.presence in (Presence.STORED, Presence.LATER, Presence.CANCELLED)
        return there or held or self.entry.origin is not None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        about = asdict(self.entry)
        return {
            **{name: about[name] or None for name in ("stream", "id", "first_id", "last_id")},
            "presence": self.presence.value,
            "known": self.known,
            "now_ms": self.entry.now_ms,
            "origin": about["origin"],
            "later": about["later"],
            "groups": [one.as_dict() for one in self.groups],
        }


def explain(entry: Entry, groups: Sequence[GroupFacts]) -> Verdict:
    """Return the verdict that follows from the facts."""
    presence = _presence(entry)
    return Verdict(entry, presence, tuple(GroupVerdict(_fate(entry, facts), facts) for facts in groups))


def _presence(entry: Entry) -> Presence:
    if entry.later is not None:
        if entry.later.cancelled_ms is not None:
            return Presence.CANCELLED
        return Presence.LATER if entry.later.due_ms is not None or entry.later.error else Presence.NO_LATER
    if entry.stored:
        return Presence.STORED
    if not entry.exists:
        return Presence.NO_STREAM
    after = parse_id(entry.id) > parse_id(entry.last_id or "0-0")
    return Presence.NOT_PUBLISHED if after else Presence.GONE


def _fate(entry: Entry, facts: GroupFacts) -> Fate:
    if facts.consumer:
        return _fate_of_pending(entry, facts)
    if facts.letter is not None:
        return Fate.DEAD
    if facts.last_delivered is None:
        return Fate.NO_GROUP
    if parse_id(entry.id) > parse_id(facts.last_delivered):
        return Fate.NEVER_DELIVERED if _presence(entry) is Presence.GONE else Fate.NOT_DELIVERED
    return Fate.DONE if entry.stored else Fate.UNKNOWN


def _fate_of_pending(entry: Entry, facts: GroupFacts) -> Fate:
    if facts.consumer == REPLAY_CONSUMER:
        return Fate.PUT_BACK
    if facts.consumer in WAITING_CONSUMERS:
        return Fate.WAITING_TURN if facts.consumer == TURNS_CONSUMER else Fate.WAITING_RATE
    due = facts.next_due_ms is not None and facts.next_due_ms > entry.now_ms
    return Fate.WAITING if due else Fate.IN_HAND
