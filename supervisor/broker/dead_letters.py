"""Reads dead letters, page by page.

A stream of dead letters may hold a million, and one of them megabytes: the size of a page follows from the size of its
letters, and nothing here reads further than asked. `broker.replay` puts them back or removes them.
"""

from collections.abc import AsyncIterator, Iterable

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from supervisor.core.dead_letter import Letter, parse_letter
from supervisor.core.ids import parse_id
from supervisor.errors import UsageError
from supervisor.keys import dead_key

#: Size of the first page; the weight of its letters sets the size of the next.
_PAGE_MIN = 1
_PAGE_MAX = 500
#: About the weight of a page, so that it is read well within the time limit of one command.
_PAGE_BYTES = 1_000_000


async def pages(
    redis: Redis, stream: str, group: str, start: str = "-", end: str = "+", *, most: int = _PAGE_MAX
) -> AsyncIterator[list[Letter]]:
    """Yield the group's letters from `start` to `end` (bounds of XRANGE), the oldest first, at most `most` at once.

    Raises redis-py's errors.
    """
    key, count = dead_key(stream, group), min(most, _PAGE_MIN)
    while page := await redis.execute_command("XRANGE", key, start, end, "COUNT", count):
        yield [parse_letter(letter_id, stream, group, flat) for letter_id, flat in page]
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
    """Return the letter of each id; missing ids are left out.

    An id is a letter's own, or else that of a message, whose first letter is returned. Without `own` it is always that
    of a message.

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
    except ResponseError:  # the key is not a stream; its letters may still be valid
        return False
