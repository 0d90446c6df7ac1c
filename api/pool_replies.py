"""What the routes about pending messages and the pool answer with, for the description in OpenAPI."""

from pydantic import BaseModel

from .replies import EXAMPLE_ID, EXAMPLE_STREAM, EntryIdText, described


class PendingMessage(BaseModel):
    """A message that was delivered and is not settled."""

    id: EntryIdText
    consumer: str
    idle_ms: int
    deliveries: int
    """As Redis counts: repeated reads of a worker's own pending list included."""
    attempts: int
    """Handler runs that failed."""
    next_due_ms: int | None
    """When the next run is due, Unix ms; null when no retry waits."""
    foreign: bool
    """Its consumer belongs to no pool."""


_EXAMPLE_PENDING = {
    "id": EXAMPLE_ID, "consumer": "web-1:0", "idle_ms": 1200, "deliveries": 2, "attempts": 1,
    "next_due_ms": 1764000002000, "foreign": False,
}  # fmt: skip
_EXAMPLE_PENDING_OF_GROUP = {"stream": EXAMPLE_STREAM, "group": "email_workers", "pending": [_EXAMPLE_PENDING]}


class PendingOfGroup(BaseModel):
    """The unsettled messages of a group, the oldest first."""

    model_config = described(_EXAMPLE_PENDING_OF_GROUP)

    stream: str
    group: str
    pending: list[PendingMessage]


class PendingList(BaseModel):
    """The unsettled messages of all groups that have handlers."""

    model_config = described({"groups": [_EXAMPLE_PENDING_OF_GROUP], "problems": []})

    groups: list[PendingOfGroup]
    problems: list[str]
    """Why some streams are missing: their keys have another type, or Redis denies the right."""


# The pool


class Paused(BaseModel):
    """Whether the pool is paused now."""

    model_config = described({"paused": True})

    paused: bool


class RestartAccepted(BaseModel):
    """The restart has begun, or follows the one that is under way."""

    model_config = described({"accepted": True})

    accepted: bool


class Scaled(BaseModel):
    """How many workers there should be now, and before."""

    model_config = described({"workers": 4, "before": 8})

    workers: int
    before: int
