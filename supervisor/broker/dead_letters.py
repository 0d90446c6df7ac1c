"""Dead letters: what each one says, which are meant, and reading them page by page.

A stream of dead letters may hold a million, and one of them megabytes: a page is as large as its letters
allow, and nothing here reads further than it is asked to. `broker.replay` puts them back or removes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from supervisor.core.ids import parse_id
from supervisor.core.letter import FIELD_PREFIX, FIELDS_JSON, of_json
from supervisor.errors import UsageError
from supervisor.keys import dead_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from redis.asyncio import Redis

#: The first page; what its letters weigh says how many come with the next.
_PAGE_MIN = 10
_PAGE_MAX = 500
#: About what one page brings, so that it is read well within the time of one command.
_PAGE_BYTES = 1_000_000
_PREFIX = FIELD_PREFIX.decode()
_JSON = FIELDS_JSON.decode()
#: Of a number: a time in milliseconds has 13.
_DIGITS_MAX = 15


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
    #: How its worker was ended, where that is the reason: the signal's name, the exit code, the stack if it told one.
    signal: str
    exit_code: int | None
    stack: str
    fields: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which letters are meant; empty: all of them."""

    #: Parts of the text, in any case.
    reason: str = ""
    handler: str = ""
    #: Somewhere in the message's fields, its id or the error.
    text: str = ""
    #: Given up at least so long ago.
    older_than_ms: int = 0

    @property
    def empty(self) -> bool:
        """It fits every letter."""
        return not (self.reason or self.handler or self.text or self.older_than_ms)

    def fits(self, letter: Letter, now_ms: int) -> bool:
        """Whether the letter is meant."""
        if self.older_than_ms and now_ms - letter.dead_at_ms < self.older_than_ms:
            return False
        pairs = [(self.reason, letter.reason), (self.handler, letter.handler)]
        if self.text:
            pairs.append((self.text, "\n".join([letter.id, letter.error, *letter.fields, *letter.fields.values()])))
        return all(wanted.lower() in found.lower() for wanted, found in pairs)


async def pages(
    redis: Redis, stream: str, group: str, start: str = "-", end: str = "+", *, most: int = _PAGE_MAX
) -> AsyncIterator[list[Letter]]:
    """The group's letters from `start` to `end`, bounds of XRANGE, the oldest first, `most` at once.

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
    """How many letters the group has, and the id of the last one; "0-0" when there is none."""
    key = dead_key(stream, group)
    pipe = redis.pipeline(transaction=False)  # a full server refuses a MULTI, and no reads
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
    """Of each id the letter of that id, or else the first one of the message of that id; those that there are.
    Without `own` an id is always a message's.

    Redis makes both ids from the time, so a letter may well bear the id of another letter's message. Programs mean the
    letter, which they have listed; a person may have the id from a log. With `alone` it raises UsageError for such an
    id, unless the message was trimmed: then it can't be seen to be one.

    Letters are in the order in which messages were given up, so the search for messages begins at the time of
    the oldest one and only then looks at what is before: an id that a producer chose may be later than its
    letter. It looks at no more than `scan_max` letters.
    """
    found: dict[str, Letter] = {}
    wanted = list(dict.fromkeys(ids))
    for id_ in wanted if own else ():
        async for page in pages(redis, stream, group, id_, id_, most=1):
            found[id_] = page[0]
    both = {id_ for id_ in found if alone and await _is_message(redis, stream, id_)}
    missing = {id_ for id_ in wanted if id_ not in found} | both
    since, scanned = min((parse_id(id_)[0] for id_ in missing), default=0), 0
    for start, end in ((str(since), "+"), ("-", f"({since}")) if missing else ():
        async for page in pages(redis, stream, group, start, end):
            named = {letter.id: letter for letter in reversed(page) if letter.id in missing}
            for id_ in both & named.keys():
                if named[id_].letter_id != found[id_].letter_id:
                    raise UsageError(
                        f"{id_} is the id of one dead letter and of another one's message: name the one by its message,"
                        f" {found[id_].id}, or the other by its own id, {named[id_].letter_id}, or choose with --text"
                    )
            found |= named
            missing -= named.keys()
            scanned += len(page)
            if not missing or (scan_max is not None and scanned >= scan_max):
                return found
    return found


async def _is_message(redis: Redis, stream: str, id_: str) -> bool:
    try:
        return bool(await redis.execute_command("XRANGE", stream, id_, id_))
    except ResponseError:  # the key is no stream: its letters may be put in order all the same
        return False


def _letter(letter_id: str, stream: str, group: str, flat: Mapping[bytes, bytes]) -> Letter:
    told = {_text(name): _text(value) for name, value in flat.items()}
    fields = {name.removeprefix(_PREFIX): value for name, value in told.items() if name.startswith(_PREFIX)}
    if _JSON in told:
        found = of_json(flat[FIELDS_JSON])
        # Anybody can write to a stream: no letter hides the others.
        fields |= {_JSON: told[_JSON]} if found is None else {_text(name): _text(text) for name, text in found.items()}
    return Letter(
        letter_id=letter_id,
        stream=stream,
        group=group,
        id=told.get("id", ""),
        reason=told.get("reason", ""),
        deliveries=_number(told.get("deliveries", "")),
        handler=told.get("handler", ""),
        worker=told.get("worker", ""),
        dead_at_ms=_number(told.get("dead_at_ms", "")),
        error=told.get("error", ""),
        traceback=told.get("traceback", ""),
        signal=told.get("signal", ""),
        exit_code=_whole(told.get("exit_code", "")),
        stack=told.get("stack", ""),
        fields=fields,
    )


def _number(text: str) -> int:
    return _whole(text) or 0


def _whole(text: str) -> int | None:
    """The number that a worker has written; None for what only somebody else can have."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX else None


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")
