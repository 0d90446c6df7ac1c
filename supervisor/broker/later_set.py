"""Messages that are published later: finds, moves, cancels and counts them in the sorted sets beside the streams."""

import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterable
from math import inf, isinf
from typing import Any, NamedTuple

from redis.asyncio import Redis

from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.broker.scripts import FORGET_STREAM, LATER_COUNT, LATER_DUE, MOVE_LATER
from supervisor.core.field_text import Value
from supervisor.core.ids import parse_number
from supervisor.core.later import LaterMessage, digest_of, moment, parse_member
from supervisor.keys import LATER_STREAMS_KEY, cancelled_key, later_key, origins_key
from supervisor.text import decoded

#: Further than any due time.
_ALWAYS_MS = 10**18
_PAGE = 500
#: Cancelled messages that are remembered, and for how long after the last one.
_CANCELLED_MAX = 1_000
_CANCELLED_S = 7 * 24 * 3600
#: Members that Redis compares with a pattern in one step: about a millisecond of its time.
_MATCHED_AT_ONCE = 5_000
#: Ids that JSON writes in one way, and that have no special characters of patterns.
_PLAIN = re.compile("[A-Za-z0-9_.:-]+")
#: What `digest_of` returns.
_DIGEST = re.compile("[0-9a-f]{16}")


class DueMembers(NamedTuple):
    """What is due in one stream."""

    #: Time until the next message is due, by the server's clock; infinite when no other waits.
    next_s: float
    members: list[bytes]


class Waiting(NamedTuple):
    """A message that waits, as it is listed."""

    stream: str
    #: Infinite for a malformed message that was due, and is never published.
    due_ms: float
    member: bytes
    #: None: malformed.
    message: LaterMessage | None
    error: str = ""

    @property
    def id(self) -> str:
        """The message's id, by which it can be cancelled."""
        return self.message.id if self.message else digest_of(self.member)

    def as_dict(self) -> dict[str, Any]:
        """Return the message for JSON; `due` is null for a malformed one that was due."""
        known: dict[str, Any] = {"stream": self.stream, "id": self.id, "due": None}
        if not isinf(self.due_ms):
            known["due"] = moment(self.due_ms).isoformat(timespec="milliseconds")
        if self.message is None:
            return {**known, "error": self.error, "member": decoded(self.member)}
        return {**known, "fields": {name: decoded(value) for name, value in self.message.fields.items()}}


class LaterCount(NamedTuple):
    """How much is to be published later in one stream."""

    stream: str
    #: All that have a due time: what is due, too, and what will turn out to be malformed then.
    waiting: int
    #: How long the oldest message that is due waits to be moved; None: none is due.
    overdue_s: float | None
    #: Those that were due, and stay for ever.
    malformed: int


async def due(redis: Redis, stream: str, count: int, ahead_ms: int = 0) -> DueMembers:
    """Return up to `count` members that are due; `ahead_ms` looks into the future. Raises redis-py's errors."""
    reply: Any = await redis.eval(LATER_DUE.text, 1, later_key(stream), count, ahead_ms)
    next_ms, members = reply
    return DueMembers(inf if next_ms < 0 else next_ms / 1000, members)


async def move(
    redis: Redis, stream: str, messages: Iterable[tuple[bytes, LaterMessage]], ahead_ms: int = 0
) -> list[str]:
    """Publish the messages that are due and still there, each once; return their ids. Raises redis-py's errors."""
    arguments: list[Value | int] = []
    for member, message in messages:
        arguments += [member, message.id, 2 * len(message.fields)]
        arguments += [text for pair in message.fields.items() for text in pair]
    if not arguments:
        return []
    keys = later_key(stream), stream, origins_key(stream)
    ids: Any = await redis.eval(MOVE_LATER.text, len(keys), *keys, ahead_ms, *arguments)
    return [entry.decode() for entry in ids]


async def park(redis: Redis, stream: str, member: bytes) -> None:
    """Give a malformed member an infinite due time, so that it stays and holds up no others."""
    await redis.zadd(later_key(stream), {member: inf}, xx=True)


async def run_now(redis: Redis, waiting: Waiting) -> str | None:
    """Publish the message at once; return its id, or None when it is gone or malformed. Raises redis-py's errors."""
    if waiting.message is None:
        return None
    ids = await move(redis, waiting.stream, [(waiting.member, waiting.message)], _ALWAYS_MS)
    return ids[0] if ids else None


async def cancel(redis: Redis, waiting: Waiting) -> bool:
    """Remove the message; return False when it is gone: published or cancelled."""
    if not await redis.zrem(later_key(waiting.stream), waiting.member):
        return False
    key = cancelled_key(waiting.stream)
    pipe = redis.pipeline(transaction=False)
    pipe.zadd(key, {waiting.id: time.time() * 1000})
    pipe.zremrangebyrank(key, 0, -_CANCELLED_MAX - 1)
    pipe.expire(key, _CANCELLED_S)
    with contextlib.suppress(*REDIS_FAULTS):  # only `explain` needs it
        await pipe.execute()
    return True


async def listed(redis: Redis, stream: str, count: int | None = None) -> AsyncIterator[Waiting]:
    """Yield what waits, the first due first. Raises redis-py's errors."""
    start = 0
    while count is None or start < count:
        last = start + (_PAGE if count is None else min(_PAGE, count - start)) - 1
        page: Any = await redis.zrange(later_key(stream), start, last, withscores=True)
        for member, score in page:
            yield _waiting(stream, member, score)
        if len(page) < last - start + 1:
            return
        start += len(page)


async def find(redis: Redis, stream: str, message_id: str) -> Waiting | None:
    """Return the message with this id, None when there is none.

    Redis looks at every message of the stream. Only the members that have the id in their text are sent here, unless
    JSON may write it in other ways, or it may be a digest.
    """
    if _PLAIN.fullmatch(message_id):
        async for member, score in _scan(redis, stream, f"*{message_id}*"):
            if (found := _waiting(stream, member, score)).id == message_id:
                return found
        if not _DIGEST.fullmatch(message_id):
            return None
    async for member, score in _scan(redis, stream):
        if _DIGEST.fullmatch(message_id) and digest_of(member) != message_id:
            continue
        if (found := _waiting(stream, member, score)).id == message_id:
            return found
    return None


async def _scan(redis: Redis, stream: str, pattern: str | None = None) -> AsyncIterator[tuple[bytes, float]]:
    """Yield all members of the set, or those that match the pattern, with their due times in Unix ms."""
    cursor: Any = 0
    while True:
        page: Any
        count = _PAGE if pattern is None else _MATCHED_AT_ONCE
        cursor, page = await redis.zscan(later_key(stream), cursor, match=pattern, count=count)
        for member, score in page:
            yield member, score
        if not cursor:
            return


async def noted_streams(redis: Redis) -> dict[str, int]:
    """Return the streams that publishers have given messages for later, and when, Unix ms."""
    noted: Any = await redis.hgetall(LATER_STREAMS_KEY)
    return {decoded(name): parse_number(ms) or 0 for name, ms in noted.items()}


async def forget_empty(redis: Redis, stream: str, noted_ms: int) -> bool:
    """Forget a stream that was noted at `noted_ms`, if no message waits for it; return whether none does."""
    if await redis.exists(later_key(stream)):
        return False
    await redis.eval(FORGET_STREAM.text, 1, LATER_STREAMS_KEY, stream, noted_ms)
    return True


async def counts(redis: Redis, streams: Iterable[str]) -> list[LaterCount]:
    """Count what waits in each of the streams; those that have nothing are left out. Raises redis-py's errors."""
    found = []
    for stream in await _with_set(redis, list(streams)):
        reply: Any = await redis.eval(LATER_COUNT.text, 1, later_key(stream))
        waiting, late_ms, malformed = reply
        if waiting or malformed:
            found.append(LaterCount(stream, waiting, None if late_ms < 0 else late_ms / 1000, malformed))
    return found


async def _with_set(redis: Redis, streams: list[str]) -> list[str]:
    """Return the streams that have a set, in one round trip."""
    pipe = redis.pipeline(transaction=False)
    for stream in streams:
        pipe.exists(later_key(stream))
    return [stream for stream, found in zip(streams, await pipe.execute(), strict=True) if found]


def _waiting(stream: str, member: bytes, due_ms: float) -> Waiting:
    try:
        return Waiting(stream, due_ms, member, parse_member(member))
    except ValueError as error:
        return Waiting(stream, due_ms, member, None, str(error))
