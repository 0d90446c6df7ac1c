"""What the routes of messages for later and of schedules answer with, for the description in OpenAPI."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from .replies import EXAMPLE_ID, EntryIdText, LaterCount, described

_STREAM = "reports"
_LATER_ID = "3f0c8a52b1d94e6f7a0b1c2d"
_DUE = "2030-01-31T07:30:00.000+00:00"
_WAITING = {"stream": _STREAM, "id": _LATER_ID, "due": _DUE, "fields": {"kind": "weekly"}}
_SCHEDULE: dict[str, Any] = {
    "name": "nightly", "stream": _STREAM, "cron": "0 3 * * *", "every_s": None, "timezone": "Europe/Vienna",
    "missed": "once", "fields": {"kind": "nightly"}, "last": "2030-01-31T03:00:00+01:00",
    "next": ["2030-02-01T03:00:00+01:00"], "paused_since": None,
}  # fmt: skip
DueAt = Annotated[str, Field(description="When it is due", json_schema_extra={"format": "date-time"})]


class StoredLater(BaseModel):
    """A message is stored that is published later."""

    model_config = described({"later": _LATER_ID, "due": _DUE, "stream": _STREAM})

    later: str
    """Its id until it is published."""
    due: DueAt
    stream: str


class StoredLaterBatch(BaseModel):
    """Messages are stored that are published later."""

    model_config = described({"later": [_LATER_ID], "due": _DUE, "stream": _STREAM, "count": 1})

    later: list[str]
    """Their ids until they are published, in the order of the messages."""
    due: DueAt
    stream: str
    count: int


class LaterMessage(BaseModel):
    """A message that waits."""

    model_config = described(_WAITING)

    stream: str
    id: str
    due: str | None
    """Null for a malformed member that was due, and is never published."""
    fields: dict[str, str] | None = None
    error: str | None = None
    """Why a member is malformed."""
    member: str | None = None
    """The malformed member."""


class LaterList(BaseModel):
    """What is to be published later."""

    model_config = described(
        {
            "messages": [_WAITING],
            "streams": [{"stream": _STREAM, "waiting": 1, "overdue_s": None, "malformed": 0}],
        }
    )

    messages: list[LaterMessage]
    streams: list[LaterCount]


class Run(BaseModel):
    """A message was published now."""

    model_config = described({"id": EXAMPLE_ID, "stream": _STREAM})

    id: EntryIdText
    stream: str


class ScheduleState(BaseModel):
    """A schedule of config.toml."""

    name: str
    stream: str
    cron: str | None
    every_s: float | None
    timezone: str
    missed: str
    fields: dict[str, Any]
    last: str | None
    """Its last tick; null until its first one, also after a pause or a change."""
    next: list[str]
    """Its next ticks; empty while it is paused."""
    paused_since: str | None


class ScheduleList(BaseModel):
    """The schedules of config.toml."""

    model_config = described({"schedules": [_SCHEDULE]})

    schedules: list[ScheduleState]
