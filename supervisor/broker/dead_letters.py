"""Reads and filters dead letters, page by page.

A stream of dead letters may hold a million, and one of them megabytes: the size of a page follows from the size of its
letters, and nothing here reads further than asked. `broker.replay` puts them back or removes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from supervisor.core.dead_letter import FIELD_PREFIX
from supervisor.core.ids import parse_id
from supervisor.core.records import parse_number
from supervisor.errors import UsageError
from supervisor.keys import dead_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from redis.asyncio import Redis

#: Size of the first page; the weight of its letters sets the size of the next.
_PAGE_MIN = 10
_PAGE_MAX = 500
#: About the weight of a page, so that it is read well within the time limit of one command.
_PAGE_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    #: Its own id, in the stream of dead letters.
    letter_id: str
    stream: str
    group: str
    #: The id of the message that was given up.
    id: str
    reason: str
    deliveries: int
    handler: str
    worker: str
    dead_at_ms: int
    error: str
    traceback: str
    #: How the worker ended, where that is the reason: the signal's name, the exit code, the stack if there is one.
    signal: str
    exit_code: int | None
    stack: str
    fields: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Filter:
    """Chooses letters; empty: all of them."""

    #: Parts of the text, in any case.
    reason: str = ""
    handler: str = ""
    #: Somewhere in the message's fields, its id or the error.
    text: str = ""
    #: The least time since the message was given up.
    older_than_ms: int = 0

    @property
    def empty(self) -> bool:
        """Whether every letter matches."""
        return not (self.reason or self.handler or self.text or self.older_than_ms)

    def fits(self, letter: Letter, now_ms: int) -> bool:
        """Return whether the letter matches."""
        if self.older_than_ms and now_ms - letter.dead_at_ms < self.older_than_ms:
            return False
        pairs = [(self.reason, letter.reason), (self.handler, letter.handler)]
        if self.text:
            pairs.append((self.text, "\n".join([letter.id, letter.error, *letter.fields, *letter.fields.values()])))
        return all(part.lower() in text.lower() for part, text in pairs)


async def pages(
    redis: Redis, stream: str, group: str, start: str = "-", end: str = "+", *, most: int = _PAGE_MAX
) -> AsyncIterator[list[Letter]]:
    """Yield the group's letters from `start` to `end` (bounds of XRANGE), the oldest first, at most `most` at once.

    Raises redis-py's errors.
    """
    key, count = dead_key(stream, group), min(most, _PAGE_MIN)
    while page := await redis.execute_command("XRANGE", key, start, end, "COUNT", count):
        yield [_letter(letter_id.decode(), stream, group, flat) for letter_id, flat in page]
        if len(page) < count:
            return
        start = f"({page[-1][0].decode()}"
        weight = sum(len(name) + len(value) for _, flat in page for name, value in flat.items())
        count = max(1, min(most, _PAGE_MAX, _PAGE_BYTES * len(page) // max(1, weight)))


async def extent(redis: Redis, stream: str, group: str) -> tuple[int, str]:
    """Return the number of the group's letters and the id of the last one; "0-0" when there is none."""
    key = dead_key(stream, group)
    pipe = redis.pipeline(transaction=False)  # a full server refuses MULTI but not reads
    pipe.execute_command("XLEN", key)
    pipe.execute_command("XREVRANGE", key, "+", "-", "COUNT", 1)
    total, last = await pipe.execute()
    return int(total), last[0][0].decode() if last else "0-0"


async def by_ids(
    redis: Redis,
    stream: str,
    group: str,
    ids: Iterable[str],
    *,
    own: bool = True,
    alone: bool = False,
    scan_max: int | None = None,
) -> dict[str, Letter]:
    """Return for each id the letter of that id, or else the first letter of the message of that id; missing ids are
    left out. Without `own` an id is always a message's.

    Redis makes both ids from the time, so a letter may have the id of another letter's message. Programs mean the
    letter, which they have listed; a person may have the id from a log. With `alone` such an id raises UsageError,
    unless the message was trimmed: then it can't be recognized.

    Letters are in the order in which messages were given up. So the search for messages begins at the time of the
    oldest message and only then looks at earlier letters: an id that a producer chose may be later than its letter.
    It looks at no more than `scan_max` letters.
    """
    found: dict[str, Letter] = {}
    wanted = list(dict.fromkeys(ids))
    for id_ in wanted if own else ():
        async for page in pages(redis, stream, group, id_, id_, most=1):
            found[id_] = page[0]
    ambiguous = {id_ for id_ in found if alone and await _is_message(redis, stream, id_)}
    missing = {id_ for id_ in wanted if id_ not in found} | ambiguous
    since, scanned = min((parse_id(id_)[0] for id_ in missing), default=0), 0
    for start, end in ((str(since), "+"), ("-", f"({since}")) if missing else ():
        async for page in pages(redis, stream, group, start, end):
            named = {letter.id: letter for letter in reversed(page) if letter.id in missing}
            for id_ in ambiguous & named.keys():
                _refuse_ambiguous(found[id_], named[id_])
            found |= named
            missing -= named.keys()
            scanned += len(page)
            if not missing or (scan_max is not None and scanned >= scan_max):
                return found
    return found


def _refuse_ambiguous(letter: Letter, other: Letter) -> None:
    """Raise UsageError when the id of `letter` is also the id of the message of another letter."""
    if other.letter_id != letter.letter_id:
        raise UsageError(
            f"{letter.letter_id} is the id of one dead letter and of another one's message: name the one by its"
            f" message, {letter.id}, or the other by its own id, {other.letter_id}, or choose with --text"
        )


async def _is_message(redis: Redis, stream: str, id_: str) -> bool:
    try:
        return bool(await redis.execute_command("XRANGE", stream, id_, id_))
    except ResponseError:  # the key is no stream; its letters may be valid all the same
        return False


def _letter(letter_id: str, stream: str, group: str, flat: Mapping[bytes, bytes]) -> Letter:
    def text(name: bytes) -> str:
        return _text(flat.get(name, b""))

    cut = len(FIELD_PREFIX)
    return Letter(
        letter_id=letter_id,
        stream=stream,
        group=group,
        id=text(b"id"),
        reason=text(b"reason"),
        deliveries=parse_number(text(b"deliveries")) or 0,
        handler=text(b"handler"),
        worker=text(b"worker"),
        dead_at_ms=parse_number(text(b"dead_at_ms")) or 0,
        error=text(b"error"),
        traceback=text(b"traceback"),
        signal=text(b"signal"),
        exit_code=parse_number(text(b"exit_code")),
        stack=text(b"stack"),
        fields={_text(name[cut:]): _text(value) for name, value in flat.items() if name.startswith(FIELD_PREFIX)},
    )


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
