"""What the routes answer with, for the description in OpenAPI and for tests; the routes themselves build plain JSON."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from supervisor.broker.inspect import GroupInfo
from supervisor.core.dead_letter import Letter
from supervisor.core.entry_fate import Fate, GroupFacts, LaterFact, Presence
from supervisor.core.origin import Origin

EXAMPLE_ID = "1764000000000-0"
EXAMPLE_STREAM = "events:user_created"
_EXAMPLE_TIME = "2025-11-24T16:00:00.000Z"
_EXAMPLE_GROUP: dict[str, Any] = {
    "stream": EXAMPLE_STREAM, "group": "email_workers", "exists": True, "lag": 3, "lag_at_least": False, "pending": 1,
    "replaying": 0, "retrying": 1, "consumers": 8, "oldest_s": 1.2, "oldest_id": EXAMPLE_ID, "dead": 0,
    "trimmed_unread": 0,
}  # fmt: skip
EXAMPLE_LETTER = {
    "letter_id": "1764000000123-0", "stream": EXAMPLE_STREAM, "group": "email_workers", "id": EXAMPLE_ID,
    "reason": "failed 5 times, the last time with TimeoutError", "deliveries": 5, "handler": "handlers.mail.send",
    "worker": "web-1:0", "dead_at_ms": 1764000000123, "error": "TimeoutError", "traceback": "",
    "signal": "", "exit_code": None, "stack": "",
    "fields": {"user_id": "1"},
}  # fmt: skip
_EXAMPLE_OUTCOME = {name: EXAMPLE_LETTER[name] for name in ("stream", "group", "letter_id", "id")}


def described(example: dict[str, Any]) -> ConfigDict:
    """Return the configuration of a model that is described with an example."""
    return ConfigDict(json_schema_extra={"example": example}, use_attribute_docstrings=True)


# Messages

EntryIdText = Annotated[str, Field(pattern="^[0-9]{1,20}-[0-9]{1,20}$")]
_TIME_TEXT = "When Redis stored it, by its id; null where the id is not a time"
AcceptedAt = Annotated[str | None, Field(description=_TIME_TEXT, json_schema_extra={"format": "date-time"})]
Next = Annotated[str | None, Field(description="The address of the next page; null after the last one")]


class Stored(BaseModel):
    """A message is stored."""

    model_config = described({"id": EXAMPLE_ID, "stream": EXAMPLE_STREAM, "accepted_at": _EXAMPLE_TIME})

    id: EntryIdText
    stream: str
    accepted_at: AcceptedAt


class StoredItem(BaseModel):
    """The result for one message of a batch."""

    id: EntryIdText
    outcome: Literal["stored"]


class StoredBatch(BaseModel):
    """All messages are stored."""

    model_config = described(
        {
            "stream": EXAMPLE_STREAM,
            "ids": [EXAMPLE_ID],
            "count": 1,
            "accepted_at": _EXAMPLE_TIME,
            "results": [{"id": EXAMPLE_ID, "outcome": "stored"}],
        }
    )

    stream: str
    ids: list[EntryIdText]
    """In the order of the messages."""
    count: int
    accepted_at: AcceptedAt
    results: list[StoredItem]
    """One for each message, in their order."""


class StoredMessage(BaseModel):
    """A message of the history."""

    model_config = described({"id": EXAMPLE_ID, "fields": {"user_id": "1"}})

    id: EntryIdText
    fields: dict[str, str]
    """Bytes that are not UTF-8 are written `\\xNN`."""


class MessagePage(BaseModel):
    """A range of history."""

    model_config = described({"messages": [{"id": EXAMPLE_ID, "fields": {"user_id": "1"}}], "next": None})

    messages: list[StoredMessage]
    next: Next


@dataclass(frozen=True, kw_only=True)
class GroupFate(GroupFacts):
    """What became of a message in one group."""

    fate: Fate


class Explanation(BaseModel):
    """What became of a message."""

    model_config = described(
        {
            "stream": EXAMPLE_STREAM, "id": EXAMPLE_ID, "first_id": EXAMPLE_ID, "last_id": EXAMPLE_ID,
            "presence": "stored", "known": True, "now_ms": 1764000001200, "origin": None, "later": None,
            "groups": [{
                "group": "email_workers", "fate": "waiting for a retry", "last_delivered": EXAMPLE_ID, "before": 0,
                "before_at_least": False, "consumer": "web-1:0", "idle_ms": 1200, "foreign": False, "deliveries": 1,
                "attempts": 1, "next_due_ms": 1764000002000, "crashes": 0, "turn": None, "emitted": [], "letter": None,
                "letters_left": 0,
            }],
        }
    )  # fmt: skip

    stream: str
    id: str
    """The message's id. For a message that has not entered its stream: its id until then."""
    first_id: EntryIdText | None
    """The first entry of the stream; null when it is empty."""
    last_id: EntryIdText | None
    presence: Presence
    known: bool
    """Redis holds the message, or something about it."""
    now_ms: int
    """The clock of Redis."""
    origin: Origin | None
    """What published it; null for a producer, or when it is not known any more."""
    later: LaterFact | None
    """What is known of a message for later that is not in its stream."""
    groups: list[GroupFate]


# Dead letters


class DeadLetterPage(BaseModel):
    """Dead letters, the oldest first."""

    model_config = described(
        {"letters": [EXAMPLE_LETTER], "total": 1, "scanned": 1, "matching": 1, "complete": True, "next": None}
    )

    letters: list[Letter]
    total: int
    """All dead letters, whatever the filter."""
    scanned: int
    matching: int
    """Those that were scanned and match the filter; without a filter, all."""
    complete: bool
    """The scan has reached the end, so `matching` counts all."""
    next: Next


class ChangedLetter(BaseModel):
    """The result for one dead letter, or for an id without one."""

    id: str
    outcome: Literal["replayed", "dropped", "gone", "pending", "no-id", "no-group", "refused", "not-found"]
    stream: str | None = None
    group: str | None = None
    letter_id: str | None = None
    error: str | None = None


class ChangedLetters(BaseModel):
    """The results of a replay or a drop."""

    model_config = described(
        {
            "outcomes": [{**_EXAMPLE_OUTCOME, "outcome": "replayed"}],
            "counts": {"replayed": 1},
            "total": 1,
            "scanned": 1,
            "next": None,
        }
    )

    outcomes: list[ChangedLetter]
    counts: dict[str, int]
    """The number of letters for each outcome."""
    total: int
    scanned: int
    next: dict[str, Any] | None
    """The body of the request that continues; null when nothing is left."""


# Status: docs/status.md describes every field.


class RedisState(BaseModel):
    """What Redis says about itself."""

    url: str | None
    """Without its password."""
    version: str | None
    durability: Literal["none", "rdb", "everysec", "always"] | None
    error: str | None = None
    """Why it can't be used."""


class Exit(BaseModel):
    """How a process ended."""

    reason: str
    code: int | None
    signal: str | None
    uptime_s: float


class WorkerState(BaseModel):
    """A slot and its worker."""

    model_config = ConfigDict(extra="allow")

    slot: int
    pid: int | None
    state: Literal["EMPTY", "STARTING", "READY", "DRAINING", "BACKOFF", "FAILED"]
    incarnation: int
    restarts: int
    last_exit: Exit | None
    beat_age_s: float | None
    rss_bytes: int | None
    pss_bytes: int | None
    in_flight: int
    running: int
    waiting: int
    done: int
    failed: int
    dead: int


class ServiceState(BaseModel):
    """A service of the pool."""

    name: str
    pid: int | None
    state: str
    restarts: int
    last_exit: Exit | None
    beat_age_s: float | None
    """Since the last cycle of the keeper or the relay; null for the others."""


class LaterCount(BaseModel):
    """How many messages for one stream are to be published later."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    stream: str
    waiting: int
    """With malformed members that are not due yet: a member is read when it is due."""
    overdue_s: float | None
    """How long the first message has been due; null while none is."""
    malformed: int
    """Malformed members that were due; they are never published."""


class ScheduleTicks(BaseModel):
    """When a schedule came last, and when it comes next."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: str
    stream: str
    last: str | None
    next: str | None
    """Null while it is paused."""
    paused_since: str | None


class PoolState(BaseModel):
    """What `supervisor status --json` prints; docs/status.md describes every field."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
                "state": "healthy", "pid": 4711, "uptime_s": 3600.5,
                "redis": {"url": "redis://127.0.0.1:6379/0", "version": "7.0.15", "durability": "everysec"},
                "workers": [], "groups": [_EXAMPLE_GROUP], "later": [], "schedules": [],
            }
        },
    )  # fmt: skip

    state: Literal["healthy", "starting", "paused", "degraded", "draining", "down"]
    pid: int | None
    uptime_s: float | None
    redis: RedisState
    workers: list[WorkerState]
    groups: list[GroupInfo]
    later: list[LaterCount]
    schedules: list[ScheduleTicks]
    services: list[ServiceState] = []
    reason: str | None = None
    """Why it is down, or why no pool is here."""
    degraded_reasons: list[str] = []


class WorkerList(BaseModel):
    """The workers of this host's pool."""

    model_config = described({"state": "healthy", "workers": [], "services": []})

    state: str
    workers: list[WorkerState]
    services: list[ServiceState]


class GroupList(BaseModel):
    """The groups that have handlers."""

    model_config = described({"groups": [_EXAMPLE_GROUP], "problems": []})

    groups: list[GroupInfo]
    problems: list[str]
    """Why some streams are missing: their keys have another type, or Redis denies the right."""


class RetentionState(BaseModel):
    """What is removed from a stream."""

    max_age_s: float
    max_length: int
    held_by: str | None
    """The group that holds back entries beyond the limits."""


class StreamState(BaseModel):
    """A stream and its groups, those of other programs too."""

    stream: str
    exists: bool
    length: int
    first_id: EntryIdText | None
    last_id: EntryIdText | None
    retention: RetentionState
    groups: list[GroupInfo]


class StreamList(BaseModel):
    """The streams that have handlers."""

    model_config = described(
        {
            "streams": [
                {
                    "stream": EXAMPLE_STREAM, "exists": True, "length": 4, "first_id": EXAMPLE_ID,
                    "last_id": EXAMPLE_ID, "retention": {"max_age_s": 0, "max_length": 0, "held_by": None},
                    "groups": [_EXAMPLE_GROUP],
                }
            ],
            "problems": [],
        }
    )  # fmt: skip

    streams: list[StreamState]
    problems: list[str]
    """Why some streams are missing: their keys have another type, or Redis denies the right."""
