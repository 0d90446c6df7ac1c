"""Selects dead letters: filters, cursors, and a scan with limits.

A stream of dead letters may hold a million. A request scans at most `SCAN_MAX` of them for at most `SCAN_S`, and says
how many it scanned and where to continue.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Self
from urllib.parse import quote, unquote

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from redis.asyncio import Redis

from supervisor.broker.dead_letters import extent, pages
from supervisor.core.dead_letter import Filter, Letter
from supervisor.text import did_you_mean

from .problems import Problem
from .schemas import COUNT_MAX, EntryId, Name, check_bound
from .stream_pages import PAGE_BYTES

SCAN_MAX = 10_000
SCAN_S = 1.0
TEXT_CHARACTERS_MAX = 1_000
#: A year.
OLDER_S_MAX = 31_536_000
_FILTERS = ("reason", "handler", "text", "older_s")
_REASON, _HANDLER = "The reason contains this, in upper or lower case", "The handler's name contains this"
_TEXT = "A field, the message's id or the error contains this"
_OLDER = "The least number of seconds since the message was given up"
_COUNT = "The greatest number, the oldest first"

Pair = tuple[str, str]
_Part = Annotated[str, StringConstraints(max_length=TEXT_CHARACTERS_MAX)]


def filter_of_query(
    reason: Annotated[_Part, Query(description=_REASON)] = "",
    handler: Annotated[_Part, Query(description=_HANDLER)] = "",
    text: Annotated[_Part, Query(description=_TEXT)] = "",
    older_s: Annotated[float, Query(ge=0, le=OLDER_S_MAX, allow_inf_nan=False, description=_OLDER)] = 0,
) -> Filter:
    """Return the filter of a query."""
    return Filter(reason, handler, text, int(older_s * 1000))


_POSITION = r"([-+]|\(?[0-9]{1,19}(-[0-9]{1,19})?)"
_ENCODED = r"([A-Za-z0-9_.~-]|%[0-9A-F]{2})+"
#: For the description: where in which group.
CURSOR_SCHEMA: dict[str, Any] = {"pattern": f"^{_POSITION},{_POSITION},{_ENCODED},{_ENCODED}$"}
#: The three ways to select, of which a body uses one.
_WAYS: list[Any] = [
    {"required": ["ids"], "properties": {"ids": {"type": "array"}}},
    {"required": ["all"], "properties": {"all": {"const": True}}},
    {
        "anyOf": [
            *({"required": [name], "properties": {name: {"minLength": 1}}} for name in _FILTERS[:-1]),
            {"required": ["older_s"], "properties": {"older_s": {"minimum": 0.001}}},
        ]
    },
]


def _whole(value: object) -> object:
    """Return 5 for 5.0, which is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Selection(BaseModel):
    """Which letters to replay or drop: those in `ids`, those that match all filters, or with `all` every letter."""

    #: Strict, so that `"all": "no"` is refused.
    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"reason": "HandlerTimeoutError"}, "oneOf": _WAYS}
    )

    ids: Annotated[list[EntryId] | None, Field(min_length=1, max_length=COUNT_MAX)] = None
    all: Annotated[
        bool, Field(description="Every letter; it must be asked for, so that a forgotten filter selects nothing")
    ] = False
    reason: Annotated[_Part, Field(description=_REASON)] = ""
    handler: Annotated[_Part, Field(description=_HANDLER)] = ""
    text: Annotated[_Part, Field(description=_TEXT)] = ""
    older_s: Annotated[float, Field(ge=0, le=OLDER_S_MAX, allow_inf_nan=False, description=_OLDER)] = 0
    group: Annotated[Name | None, Field(description="Only this group")] = None
    count: Annotated[int, Field(ge=1, le=COUNT_MAX, description=_COUNT), BeforeValidator(_whole)] = COUNT_MAX
    cursor: Annotated[
        str | None, Field(description="Where to continue: `next` of an answer", json_schema_extra=CURSOR_SCHEMA)
    ] = None

    @property
    def filter(self) -> Filter:
        """The filter in the body."""
        return Filter(self.reason, self.handler, self.text, int(self.older_s * 1000))

    @model_validator(mode="before")
    @classmethod
    def _known(cls, body: object) -> object:
        for name in body if isinstance(body, dict) else ():
            if name not in cls.model_fields:
                hint = did_you_mean(str(name), cls.model_fields)
                text = f"unknown member {name!r}{hint} (known: {', '.join(cls.model_fields)})"
                raise PydanticCustomError("unknown_member", "{text}", {"text": text})
        return body

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [self.ids is not None, self.all, not self.filter.empty]
        if sum(ways) != 1:
            raise PydanticCustomError(
                "selection",
                "select the letters in one way: ids, or some of {filters}, or all: true",
                {"filters": ", ".join(_FILTERS)},
            )
        return self


class GroupSelection(Selection):
    """Which letters of one group to replay or drop: those in `ids`, those that match all filters, or all of them."""

    #: That of the address, if at all.
    group: SkipJsonSchema[Name | None] = None


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a scan begins: a group, and the range of its letters."""

    pair: Pair
    start: str
    end: str = "+"

    def encode(self) -> str:
        """Encode it for an address or a body; only `parse_cursor` reads it."""
        return ",".join([self.start, self.end, *(quote(name, safe="") for name in self.pair)])


def parse_cursor(cursor: str | None) -> Cursor | None:
    """Decode a cursor. Raises Problem for any other text."""
    if cursor is None:
        return None
    try:
        start, end, stream, group = cursor.split(",")
        return Cursor((unquote(stream), unquote(group)), check_bound(start), check_bound(end))
    except ValueError:
        detail = "use the cursor in `next` of an answer, unchanged"
        raise Problem("invalid", detail, errors=[{"parameter": "cursor", "detail": detail}]) from None


@dataclass(slots=True)
class ScanResult:
    """What a scan has found."""

    #: The number of letters of all groups.
    total: int
    letters: list[Letter] = field(default_factory=list)
    scanned: int = 0
    #: The number of scanned letters that match; without a filter, all letters.
    matching: int = 0
    #: Where the next scan begins; None when nothing is left.
    next: Cursor | None = None
    #: The scan has reached the end, so `matching` counts all matches from its start on.
    complete: bool = False


async def scan(
    redis: Redis, pairs: Sequence[Pair], wanted: Filter, count: int, cursor: Cursor | None, *, tally: bool = False
) -> ScanResult:
    """Find the first `count` letters that match, from `cursor` on.

    With `tally` it also counts further matches, as far as the limits allow. The scan ignores letters that are added
    during the scan: a message that is replayed and fails again must not be found again and again.
    """
    extents = {pair: await extent(redis, *pair) for pair in pairs}
    result = ScanResult(total=sum(total for total, _ in extents.values()))
    counting = tally and not wanted.empty
    walk = [
        Cursor(pair, cursor.start, cursor.end)
        if cursor and cursor.pair == pair
        else Cursor(pair, "-", extents[pair][1])
        for pair in sorted(pairs)
        if cursor is None or pair >= cursor.pair
    ]
    await _fill(result, _walk(redis, walk, SCAN_MAX if counting else count + 1), wanted, count, counting=counting)
    if wanted.empty:
        result.matching, result.complete = result.total, True
    return result


async def _fill(
    result: ScanResult, letters: AsyncIterator[tuple[Letter, str]], wanted: Filter, count: int, *, counting: bool
) -> None:
    now_ms, until_s = int(time.time() * 1000), time.monotonic() + SCAN_S
    size, full = 0, False
    async for letter, end in letters:
        full = full or len(result.letters) >= count or size > PAGE_BYTES
        late = result.scanned >= SCAN_MAX or (result.scanned and time.monotonic() > until_s)
        if late or (full and not counting):
            result.next = result.next or Cursor((letter.stream, letter.group), letter.letter_id, end)
            return
        result.scanned += 1
        if wanted.fits(letter, now_ms):
            result.matching += 1
            if not full:
                result.letters.append(letter)
                size += sum(map(len, (letter.traceback, letter.stack, *letter.fields, *letter.fields.values())))
            elif result.next is None:
                result.next = Cursor((letter.stream, letter.group), letter.letter_id, end)
    result.complete = True


async def _walk(redis: Redis, cursors: Sequence[Cursor], most: int) -> AsyncIterator[tuple[Letter, str]]:
    """Yield each letter with the end of its group's range."""
    for cursor in cursors:
        async for page in pages(redis, *cursor.pair, cursor.start, cursor.end, most=most):
            for letter in page:
                yield letter, cursor.end
