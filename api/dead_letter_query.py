"""Which dead letters a request means, and looking for them: bounded, with a place to go on from.

A stream of dead letters may hold a million. A request looks at `SCAN_MAX` of them for at most `SCAN_S`, says
how many it looked at, and how to go on.
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Self

import orjson
from fastapi import Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from supervisor.broker.dead_letters import extent, pages
from supervisor.core.dead_letter import Filter, Letter
from supervisor.text import did_you_mean

from .problems import Problem
from .schemas import NAME_SCHEMA, EntryId, check_bound, check_name

if TYPE_CHECKING:
    from redis.asyncio import Redis

SCAN_MAX = 10_000
SCAN_S = 1.0
COUNT_MAX = 1_000
TEXT_CHARACTERS_MAX = 1_000
#: A year.
OLDER_S_MAX = 31_536_000
_FILTERS = ("reason", "handler", "text", "older_s")
_REASON, _HANDLER = "With this in its reason, in any case", "With this in its handler's name"
_TEXT = "With this in a field, the message's id or the error"
_OLDER = "Given up at least so many seconds ago"
_COUNT = "At most so many, the oldest first"

Pair = tuple[str, str]
GroupName = Annotated[str, AfterValidator(check_name), NAME_SCHEMA]
_Part = Annotated[str, StringConstraints(max_length=TEXT_CHARACTERS_MAX)]


def filter_of_query(
    reason: Annotated[_Part, Query(description=_REASON)] = "",
    handler: Annotated[_Part, Query(description=_HANDLER)] = "",
    text: Annotated[_Part, Query(description=_TEXT)] = "",
    older_s: Annotated[float, Query(ge=0, le=OLDER_S_MAX, allow_inf_nan=False, description=_OLDER)] = 0,
) -> Filter:
    """The filter in a query."""
    return Filter(reason, handler, text, int(older_s * 1000))


class Selection(BaseModel):
    """Which letters are to be replayed or dropped: those of `ids`, those that all filters fit, or with `all` all."""

    #: Strict: `"all": "no"` shall not be read as anything.
    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra={"example": {"reason": "HandlerTimeoutError"}}
    )

    ids: Annotated[list[EntryId] | None, Field(min_length=1, max_length=COUNT_MAX)] = None
    all: Annotated[bool, Field(description="Every letter; nobody shall mean that by leaving something out")] = False
    reason: Annotated[_Part, Field(description=_REASON)] = ""
    handler: Annotated[_Part, Field(description=_HANDLER)] = ""
    text: Annotated[_Part, Field(description=_TEXT)] = ""
    older_s: Annotated[float, Field(ge=0, le=OLDER_S_MAX, allow_inf_nan=False, description=_OLDER)] = 0
    group: Annotated[GroupName | None, Field(description="Only of this group")] = None
    count: Annotated[int, Field(ge=1, le=COUNT_MAX, description=_COUNT)] = COUNT_MAX
    cursor: Annotated[str | None, Field(description="Where to go on; only from `next` of an answer")] = None

    @property
    def filter(self) -> Filter:
        """What the filters say."""
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
                "letters_meant",
                "say which letters are meant, in one way: ids, or some of {filters}, or all: true",
                {"filters": ", ".join(_FILTERS)},
            )
        return self


@dataclass(frozen=True, slots=True)
class Cursor:
    """From where to look: a group, and the bounds in its letters."""

    pair: Pair
    start: str
    end: str = "+"

    def encode(self) -> str:
        """For an address or a body; only `parse_cursor` reads it."""
        return base64.urlsafe_b64encode(orjson.dumps([*self.pair, self.start, self.end])).decode().rstrip("=")


def parse_cursor(cursor: str | None) -> Cursor | None:
    """The place that a cursor names. Raises Problem for anything else."""
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        stream, group, start, end = orjson.loads(text)
        return Cursor((check_name(stream), check_name(group)), check_bound(start), check_bound(end))
    except (ValueError, TypeError, AttributeError):
        detail = "a cursor comes from `next` of an answer, and is sent back as it is"
        raise Problem("invalid", detail, errors=[{"parameter": "cursor", "detail": detail}]) from None


@dataclass(slots=True)
class ScanResult:
    """What a look has brought."""

    #: All that the groups have.
    total: int
    letters: list[Letter] = field(default_factory=list)
    scanned: int = 0
    #: How many of the scanned are meant; without a filter, all.
    matching: int = 0
    #: Where the next look begins; None when nothing is left.
    next: Cursor | None = None
    #: It has seen the end, so `matching` is all that there are from where it began.
    complete: bool = False


async def scan(
    redis: Redis, pairs: Sequence[Pair], meant: Filter, count: int, place: Cursor | None, *, tally: bool = False
) -> ScanResult:
    """The first `count` letters that are meant, from `place` on.

    With `tally` it counts, as far as it may look, how many more are meant. What comes in while it looks is not
    seen: what is replayed and fails again must not be met again and again.
    """
    extents = {pair: await extent(redis, *pair) for pair in pairs}
    found = ScanResult(total=sum(total for total, _ in extents.values()))
    counting = tally and not meant.empty
    walk = [
        Cursor(pair, place.start, place.end) if place and place.pair == pair else Cursor(pair, "-", extents[pair][1])
        for pair in sorted(pairs)
        if place is None or pair >= place.pair
    ]
    await _fill(found, _walk(redis, walk, SCAN_MAX if counting else count + 1), meant, count, counting=counting)
    if meant.empty:
        found.matching, found.complete = found.total, True
    return found


async def _fill(
    found: ScanResult, letters: AsyncIterator[tuple[Letter, str]], meant: Filter, count: int, *, counting: bool
) -> None:
    now_ms, until_s = int(time.time() * 1000), time.monotonic() + SCAN_S
    async for letter, end in letters:
        full = len(found.letters) >= count
        late = found.scanned >= SCAN_MAX or (found.scanned and time.monotonic() > until_s)
        if late or (full and not counting):
            found.next = found.next or Cursor((letter.stream, letter.group), letter.letter_id, end)
            return
        found.scanned += 1
        if meant.fits(letter, now_ms):
            found.matching += 1
            if not full:
                found.letters.append(letter)
            elif found.next is None:
                found.next = Cursor((letter.stream, letter.group), letter.letter_id, end)
    found.complete = True


async def _walk(redis: Redis, places: Sequence[Cursor], most: int) -> AsyncIterator[tuple[Letter, str]]:
    """Each letter, and the bound up to which its group is looked at."""
    for place in places:
        async for page in pages(redis, *place.pair, place.start, place.end, most=most):
            for letter in page:
                yield letter, place.end
