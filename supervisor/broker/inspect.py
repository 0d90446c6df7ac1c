"""Reads what Redis holds of streams and groups: lengths, lag, pending, oldest, dead letters.

Nothing here costs more for a longer stream: where Redis does not know a group's lag, unread entries are counted up to
LAG_COUNT_MAX and the lag is flagged as a lower bound.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from supervisor.broker.scripts import FIRST_COPIES, TRIMMED_UNREAD, UNREAD
from supervisor.core.ids import parse_id, parse_number
from supervisor.core.reclaim import foreign, owner_of
from supervisor.core.replayed_copy import name_of_copy, original_id
from supervisor.core.retry_record import parse_retry
from supervisor.errors import UsageError
from supervisor.keys import (
    POOLS_KEY,
    RATES_CONSUMER,
    REPLAY_CONSUMER,
    TURNS_CONSUMER,
    WAITING_CONSUMERS,
    behind_key,
    dead_key,
    due_key,
    host_key,
    replay_key,
    retries_key,
    trimmed_key,
)
from supervisor.text import decoded, did_you_mean

#: Unread entries that are counted at most where Redis does not know the lag: about 1 ms of the server's time.
LAG_COUNT_MAX = 1_000
_FIRST_ID = "0-0"
#: What Redis says of a key, or of a group, that does not exist.
_MISSING = ("no such key", "NOGROUP")


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream; one that does not exist has length 0 and empty ids."""

    stream: str
    exists: bool
    length: int
    first_id: str
    last_id: str
    #: The highest id that was deleted by XDEL; empty when the server does not report it.
    max_deleted_id: str
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """The progress of a group; for one that does not exist every entry is unread."""

    stream: str
    group: str
    exists: bool
    #: Undelivered entries; with `lag_at_least` there may be more.
    lag: int
    lag_at_least: bool
    #: Delivered or replayed, and not settled.
    pending: int
    #: The part of `pending` that was replayed.
    replaying: int
    #: The part of `pending` that failed and waits for a retry.
    retrying: int
    #: The part of `pending` that waits for its turn, because of `key` or `group_concurrency`.
    waiting_turn: int
    #: The part of `pending` that waits for the handler's `rate`.
    waiting_rate: int
    consumers: int
    #: Age of the oldest unsettled message, by the server's clock; of a replayed one, the time since the replay.
    oldest_s: float | None
    #: Id of the oldest unsettled entry of the stream, which retention keeps; replayed messages do not count.
    oldest_id: str | None
    dead: int
    #: Entries that were removed (MAXLEN, XTRIM, XDEL) before the group read them; None: the server can't tell, before
    #: Redis 7.0.
    trimmed_unread: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PendingInfo:
    """A message that was delivered and is not settled."""

    id: str
    consumer: str
    idle_ms: int
    #: As Redis counts: repeated reads of a worker's own pending list included.
    deliveries: int
    #: Handler runs that failed.
    attempts: int
    #: When the next run is due, Unix ms; None when it waits for no retry and no rate.
    next_due_ms: int | None
    #: Its consumer belongs to no pool.
    foreign: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}  # `asdict` takes six times as long


async def streams(redis: Redis, names: Sequence[str]) -> list[StreamInfo]:
    """Return the streams of those names. Raises redis-py's errors, also for a key that is not a stream."""
    return [info for info, _ in await _streams_with_groups(redis, names)]


async def _streams_with_groups(redis: Redis, names: Sequence[str]) -> list[tuple[StreamInfo, list[dict[str, Any]]]]:
    """Return each stream with the rows of XINFO GROUPS."""
    replies = await _ask(
        redis, [command for name in names for command in (("XINFO STREAM", name), ("XINFO GROUPS", name))]
    )
    return [
        (_stream(name, info, rows or []), rows or [])
        for name, info, rows in zip(names, replies[::2], replies[1::2], strict=True)
    ]


def _stream(name: str, info: dict[str, Any] | None, rows: list[dict[str, Any]]) -> StreamInfo:
    if info is None:
        return StreamInfo(name, False, 0, "", "", "", ())
    first = info["first-entry"]
    return StreamInfo(
        stream=name,
        exists=True,
        length=info["length"],
        first_id=decoded(first[0]) if first else "",
        last_id=decoded(info["last-generated-id"]),
        max_deleted_id=decoded(info.get("max-deleted-entry-id", "")),
        groups=tuple(decoded(row["name"]) for row in rows),
    )


async def groups(redis: Redis, pairs: Iterable[tuple[str, str]]) -> list[GroupInfo]:
    """Return the groups of the (stream, group) pairs, in order. Raises redis-py's errors."""
    wanted = list(pairs)
    if not wanted:
        return []
    names = list(dict.fromkeys(stream for stream, _ in wanted))
    found = dict(zip(names, await _streams_with_groups(redis, names), strict=True))
    now_ms = await server_time_ms(redis)
    return [await _group(redis, *found[stream], group, now_ms) for stream, group in wanted]


async def foreign_consumers(redis: Redis, names: Iterable[str]) -> set[str]:
    """Return those of the consumers that belong to no pool, living or dead. Raises redis-py's errors."""
    wanted = set(names) - {"", REPLAY_CONSUMER, *WAITING_CONSUMERS}
    if not wanted:
        return set()
    reply: Any = await redis.hkeys(POOLS_KEY)
    found = set(foreign(wanted, "", {decoded(name) for name in reply}))
    for name in list(found):  # a pool that lives may not have written itself down yet
        owner = owner_of(name)
        if owner is not None and await redis.exists(host_key(owner[0])):
            found.discard(name)
    return found


async def held_by_foreign(redis: Redis, stream: str, group: str) -> dict[str, int]:
    """Return how many messages each consumer of no pool holds, of those that hold any. Raises redis-py's errors."""
    try:
        rows: Any = await redis.xinfo_consumers(stream, group)
    except ResponseError:  # there is no such stream or group
        return {}
    held = {decoded(row["name"]): row["pending"] for row in rows if row["pending"]}
    return {name: held[name] for name in sorted(await foreign_consumers(redis, held))}


async def server_time_ms(redis: Redis) -> int:
    """Return the server's clock, Unix ms. Raises redis-py's errors."""
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


def age_s(entry_id: str, now_ms: int) -> float:
    """Return the age of an entry by its id, which Redis made of the time; 0 for one of the future."""
    return max(0.0, (now_ms - parse_id(entry_id)[0]) / 1000)


async def pending(redis: Redis, stream: str, group: str, count: int = 100) -> list[PendingInfo]:
    """Return the first `count` pending messages of a group, the oldest first, then those that were replayed.

    A replayed message that no worker has read yet belongs to REPLAY_CONSUMER. Raises UsageError when there is no such
    group.
    """
    copies = await _pending_copies(redis, stream, group, count)
    try:
        rows: Any = await redis.xpending_range(stream, group, "-", "+", count)
    except ResponseError as error:
        if not str(error).startswith("NOGROUP"):
            raise
        if not copies:
            known = (await streams(redis, [stream]))[0].groups
            hint = did_you_mean(group, known) or (f" (there are: {', '.join(known)})" if known else "")
            raise UsageError(f"stream {stream!r} has no group {group!r}{hint}") from None
        rows = []
    retries = await _retries(redis, stream, group, [row["message_id"] for row in rows])
    own = [(row["message_id"], _pending(row, retry)) for row, retry in zip(rows, retries, strict=True)]
    found = await _with_rates(redis, stream, group, [*own, *copies][:count])
    strangers = await foreign_consumers(redis, (one.consumer for one in found))
    return [replace(one, foreign=True) if one.consumer in strangers else one for one in found]


async def _with_rates(
    redis: Redis, stream: str, group: str, named: list[tuple[bytes, PendingInfo]]
) -> list[PendingInfo]:
    """Return the messages, with the due time of those that wait for their rate, which knows them by these names."""
    waiting = [name for name, one in named if one.consumer == RATES_CONSUMER]
    if not waiting:
        return [one for _, one in named]
    pipe = redis.pipeline(transaction=False)
    pipe.get(behind_key(stream, group))
    for name in waiting:
        pipe.execute_command("ZSCORE", due_key(stream, group), name)
    behind_ms, *times = await pipe.execute()
    due_ms = {
        name: int(ms) + (parse_number(behind_ms) or 0)
        for name, ms in zip(waiting, times, strict=True)
        if ms is not None
    }
    return [replace(one, next_due_ms=due_ms.get(name, one.next_due_ms)) for name, one in named]


async def copies_of(redis: Redis, stream: str, group: str, count: int) -> list[tuple[bytes, bytes]]:
    """Return (its id, its message's id) of at most `count` copies in the group's replay stream.

    Raises redis-py's errors.
    """
    found: list[list[bytes]] = await redis.eval(FIRST_COPIES.text, 1, replay_key(stream, group), str(count))
    return [(entry, original_id(entry, first)) for entry, *first in found]


async def unread_copies(redis: Redis, pairs: Iterable[tuple[str, str]]) -> int:
    """Return how many replayed messages of these (stream, group) no worker has read yet. Raises redis-py's errors."""
    wanted = [(replay_key(stream, group), group) for stream, group in pairs]
    replies = await _ask(redis, [(command, key) for key, _ in wanted for command in ("XLEN", "XINFO GROUPS")])
    unread = 0
    for (_, group), length, members in zip(wanted, replies[::2], replies[1::2], strict=True):
        unread += length - sum(member["pending"] for member in members or () if decoded(member["name"]) == group)
    return unread


async def _pending_copies(redis: Redis, stream: str, group: str, count: int) -> list[tuple[bytes, PendingInfo]]:
    """Return at most `count` replayed messages as pending ones, with their names and the ids of the messages."""
    copies, key = await copies_of(redis, stream, group, count), replay_key(stream, group)
    if not copies:
        return []
    held: dict[Any, Any] = {}
    with contextlib.suppress(ResponseError):  # the group was destroyed; it is created again
        held = {row["message_id"]: row for row in await redis.xpending_range(key, group, "-", "+", count)}
    retries = await _retries(redis, key, group, [entry for entry, _ in copies])
    unread = {"consumer": REPLAY_CONSUMER, "time_since_delivered": 0, "times_delivered": 0}
    return [
        (name_of_copy(message.decode(), entry), _pending({**held.get(entry, unread), "message_id": message}, retry))
        for (entry, message), retry in zip(copies, retries, strict=True)
    ]


async def _retries(redis: Redis, stream: str, group: str, ids: Sequence[Any]) -> list[bytes | None]:
    """Return the retry record of each."""
    found: list[bytes | None] = await redis.execute_command("HMGET", retries_key(stream, group), *ids) if ids else []
    return found


def _pending(row: dict[str, Any], retry: bytes | None) -> PendingInfo:
    record = parse_retry(retry)
    return PendingInfo(
        id=decoded(row["message_id"]),
        consumer=decoded(row["consumer"]),
        idle_ms=row["time_since_delivered"],
        deliveries=row["times_delivered"],
        attempts=record.attempts if record else 0,
        next_due_ms=record.due_ms if record else None,
    )


async def _group(redis: Redis, info: StreamInfo, members: list[dict[str, Any]], group: str, now_ms: int) -> GroupInfo:
    stream, copies = info.stream, replay_key(info.stream, group)
    member = next((m for m in members if decoded(m["name"]) == group), None)
    last = decoded(member["last-delivered-id"]) if member else _FIRST_ID
    lag, at_least, first_unread = await _unread(redis, info, member, last)
    dead, replaying, summary, first, trimmed, *of_both = await _ask(
        redis,
        [
            ("XLEN", dead_key(stream, group)),
            ("XLEN", copies),
            ("XPENDING", stream, group),
            ("XRANGE", copies, "-", "+", "COUNT", "1"),
            ("EVAL", *_trimmed_unread(stream, group)),
            *(("HLEN", retries_key(key, group)) for key in (stream, copies)),
            *(("XINFO CONSUMERS", key, group) for key in (stream, copies)),
        ],
    )
    retrying, held_back = of_both[:2], [_held_back(rows) for rows in of_both[2:]]
    oldest = _older(first_unread, decoded(summary["min"] or b"") if summary else "")
    oldest_of_both = _older(oldest, decoded(first[0][0]) if first else "")
    return GroupInfo(
        stream=stream,
        group=group,
        exists=member is not None,
        lag=lag,
        lag_at_least=at_least,
        pending=(member["pending"] if member else 0) + replaying,
        replaying=replaying,
        retrying=sum(retrying),
        waiting_turn=sum(one.get(TURNS_CONSUMER, 0) for one in held_back),
        waiting_rate=sum(one.get(RATES_CONSUMER, 0) for one in held_back),
        consumers=member["consumers"] - len(held_back[0]) if member else 0,
        oldest_s=age_s(oldest_of_both, now_ms) if oldest_of_both else None,
        oldest_id=oldest or None,
        dead=dead,
        trimmed_unread=_known(trimmed),
    )


def _held_back(rows: list[dict[str, Any]] | None) -> dict[str, int]:
    """Return how many messages each of WAITING_CONSUMERS holds, of those that exist."""
    held = {decoded(row["name"]): row["pending"] for row in rows or ()}
    return {name: held[name] for name in WAITING_CONSUMERS if name in held}


async def trimmed_unread(redis: Redis, stream: str, group: str, *, keep: bool = False) -> int | None:
    """Return how many entries were removed before the group read them; None when the server can't tell.

    With `keep` the record in Redis is brought up to date: some servers forget it when the group reads on. Raises
    redis-py's errors.
    """
    script, keys, *arguments = _trimmed_unread(stream, group, keep=keep)
    count: int = await redis.eval(script, int(keys), *arguments)
    return _known(count)


def _trimmed_unread(stream: str, group: str, *, keep: bool = False) -> tuple[str, ...]:
    """Return the arguments of EVAL."""
    record = trimmed_key(stream, group)
    return TRIMMED_UNREAD.text, "3", stream, record, f"{record}:probe", group, "1" if keep else ""


def _known(count: int) -> int | None:
    return count if count >= 0 else None


async def _unread(redis: Redis, info: StreamInfo, member: dict[str, Any] | None, last: str) -> tuple[int, bool, str]:
    """Return the lag, whether it is only a lower bound, and the first unread id.

    Redis's own figure is nil after deletions ahead of the group and on replicas, and wrong on some versions (7.0 and
    Valkey 9 report 2 for an empty stream), so it is used only where it can be right.
    """
    if not info.length or parse_id(last) >= parse_id(info.last_id):
        return 0, False, ""
    if parse_id(info.first_id) > parse_id(last):
        return info.length, False, info.first_id
    reported = member.get("lag") if member else None
    deleted_ahead = bool(info.max_deleted_id) and parse_id(info.max_deleted_id) > parse_id(last)
    known = isinstance(reported, int) and 0 < reported < info.length and not deleted_ahead
    first, counted = await redis.eval(UNREAD.text, 1, info.stream, last, "1" if known else str(LAG_COUNT_MAX + 1))
    if isinstance(reported, int) and known and counted:
        return reported, False, decoded(first)
    return min(counted, LAG_COUNT_MAX), counted > LAG_COUNT_MAX, decoded(first)


async def _ask(redis: Redis, commands: Sequence[tuple[str, ...]]) -> list[Any]:
    """Send commands in one round trip; return their replies, None for a missing key or group."""
    pipe = redis.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)
    replies = await pipe.execute(raise_on_error=False)
    for reply, command in zip(replies, commands, strict=True):
        if isinstance(reply, Exception) and not any(text in str(reply) for text in _MISSING):
            key = command[3 if command[0] == "EVAL" else 1]
            raise type(reply)(f"{reply} (key {key})") if isinstance(reply, ResponseError) else reply
    return [None if isinstance(reply, Exception) else reply for reply in replies]


def _older(*ids: str) -> str:
    return min((entry for entry in ids if entry), key=parse_id, default="")
