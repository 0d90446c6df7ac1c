"""Looks up what Redis holds of one entry, in its stream and in each group, at a bounded cost.

A group's facts come from one script, so a message that is settled at that moment shows as it was either before or
after. Its copy, if it was replayed, is looked up afterwards, and its dead letter last: if nothing was pending any more,
the letter was written by then.
"""

from collections.abc import Iterable
from dataclasses import replace
from math import isinf
from typing import Any

from redis.asyncio import Redis

from supervisor.broker import inspect, later_set, origins
from supervisor.broker.dead_letters import by_ids, extent
from supervisor.broker.scripts import ENTRY_FACTS, TURN_FACTS
from supervisor.core.entry_fate import Entry, GroupFacts, LaterFact, LetterFact, TurnFact
from supervisor.core.ids import parse_id, parse_number
from supervisor.core.message_key import key_of
from supervisor.core.replayed_copy import name_of_copy
from supervisor.core.retry_record import parse_retry
from supervisor.keys import (
    RATES_CONSUMER,
    REPLAY_CONSUMER,
    TURNS_CONSUMER,
    behind_key,
    crashes_key,
    due_key,
    group_turn_key,
    message_keys_key,
    replay_key,
    retries_key,
    turn_field,
    turns_key,
)
from supervisor.text import decoded

#: Dead letters of a group that are searched; the number left out is reported.
LETTERS_MAX = 5_000
#: Replayed messages of a group that are searched.
COPIES_MAX = 1_000
#: Undelivered entries before it that are counted.
BEFORE_MAX = inspect.LAG_COUNT_MAX


async def collect(
    redis: Redis, stream: str, entry_id: str, groups: Iterable[str] = (), *, letters_max: int = LETTERS_MAX
) -> tuple[Entry, list[GroupFacts]]:
    """Return the facts of an entry, for the stream's groups and those in `groups`.

    `entry_id` has both parts. At most `letters_max` dead letters of each group are searched. Raises redis-py's errors,
    also for a key that is not a stream.
    """
    (info,) = await inspect.streams(redis, [stream])
    stored = bool(await redis.xrange(stream, entry_id, entry_id)) if info.exists else False
    entry = Entry(
        stream=stream,
        id=entry_id,
        exists=info.exists,
        stored=stored,
        first_id=info.first_id,
        last_id=info.last_id,
        now_ms=await inspect.server_time_ms(redis),
        origin=await origins.origin_of(redis, stream, entry_id),
    )
    names = sorted({*groups, *info.groups})
    found = [await _facts(redis, entry, name, letters_max) for name in names]
    strangers = await inspect.foreign_consumers(redis, (facts.consumer for facts in found))
    return entry, [replace(facts, foreign=facts.consumer in strangers) for facts in found]


async def collect_later(
    redis: Redis, stream: str, later_id: str, groups: Iterable[str] = (), *, letters_max: int = LETTERS_MAX
) -> tuple[Entry, list[GroupFacts]]:
    """Return the facts of a message for later; when it has entered its stream, those of the entry. As `collect`."""
    waiting = await later_set.find(redis, stream, later_id)
    entered = None if waiting else await origins.entry_of_later(redis, stream, later_id)
    if entered is not None:
        return await collect(redis, stream, entered, groups, letters_max=letters_max)
    if waiting:
        fact = LaterFact(None if isinf(waiting.due_ms) else int(waiting.due_ms), None, waiting.error)
    else:
        fact = LaterFact(cancelled_ms=await origins.cancelled_ms(redis, stream, later_id))
    now_ms = await inspect.server_time_ms(redis)
    return Entry(stream, later_id, exists=True, stored=False, first_id="", last_id="", now_ms=now_ms, later=fact), []


async def _facts(redis: Redis, entry: Entry, group: str, letters_max: int) -> GroupFacts:
    facts = await _facts_of_message(redis, entry, group, letters_max)
    return replace(facts, emitted=await origins.emitted(redis, entry.stream, group, entry.id))


async def _facts_of_message(redis: Redis, entry: Entry, group: str, letters_max: int) -> GroupFacts:
    facts = await _held(redis, entry.stream, group, entry.id, stored=entry.stored)
    if facts.consumer:
        return await _with_limits(redis, entry, facts, entry.id.encode())
    copy = await _copy(redis, entry, group)
    if copy is not None:
        return replace(copy, last_delivered=facts.last_delivered, before=facts.before)
    letter, left = await _letter(redis, entry, group, letters_max)
    return replace(facts, letter=letter, letters_left=left)


async def _held(redis: Redis, stream: str, group: str, entry_id: str, *, stored: bool) -> GroupFacts:
    """Return what the group holds of the entry of this stream, without its dead letter."""
    keys = [stream, retries_key(stream, group), crashes_key(stream, group)]
    found: Any = await redis.eval(ENTRY_FACTS.text, len(keys), *keys, group, entry_id, BEFORE_MAX + 2)
    last, pending, retry, crashes, unread = found
    record = parse_retry(retry)
    _, consumer, idle_ms, deliveries = pending or (b"", b"", 0, 0)
    before = max(0, unread - stored)
    return GroupFacts(
        group=group,
        last_delivered=last.decode() or None,
        before=min(before, BEFORE_MAX),
        before_at_least=before > BEFORE_MAX,
        consumer=decoded(consumer),
        idle_ms=idle_ms,
        deliveries=deliveries,
        attempts=record.attempts if record else 0,
        next_due_ms=record.due_ms if record else None,
        crashes=parse_number(crashes) or 0,
    )


async def _with_limits(redis: Redis, entry: Entry, facts: GroupFacts, name: bytes) -> GroupFacts:
    """Return the facts with what the message waits for, or until when; `name` is that of `broker.turns.Place`."""
    if facts.consumer == RATES_CONSUMER:
        due_ms: Any = await redis.zscore(due_key(entry.stream, facts.group), name)
        behind_ms: Any = await redis.get(behind_key(entry.stream, facts.group))
        return replace(facts, next_due_ms=None if due_ms is None else int(due_ms) + (parse_number(behind_ms) or 0))
    if facts.consumer != TURNS_CONSUMER:
        return facts
    stream, group = entry.stream, facts.group
    field: Any = await redis.hget(turns_key(stream, group), "field")
    key: Any
    if field:
        stored: Any = await redis.execute_command("XRANGE", stream, entry.id, entry.id)
        key = key_of(stored[0][1].get(field)) if stored else None
    else:
        key = await redis.execute_command("HGET", message_keys_key(stream, group), name)
    keys = [stream, replay_key(stream, group), turns_key(stream, group), group_turn_key(stream, group)]
    row = b"" if key is None else turn_field(key)
    before, *found = await redis.eval(TURN_FACTS.text, len(keys), *keys, group, name, row)
    pairs = iter(decoded(part) for part in found)
    turn = TurnFact(None if key is None else decoded(key), tuple(zip(pairs, pairs, strict=True)), before)
    return replace(facts, turn=turn)


async def _copy(redis: Redis, entry: Entry, group: str) -> GroupFacts | None:
    """Return the facts of the copy in the group's replay stream; None when the message is not being replayed."""
    copies = await inspect.copies_of(redis, entry.stream, group, COPIES_MAX)
    copy = next((copy for copy, message in copies if message == entry.id.encode()), None)
    if copy is None:
        return None
    facts = await _held(redis, replay_key(entry.stream, group), group, copy.decode(), stored=True)
    if facts.consumer:
        return await _with_limits(redis, entry, facts, name_of_copy(entry.id, copy))
    unread = facts.last_delivered is None or parse_id(copy) > parse_id(facts.last_delivered)
    return replace(facts, consumer=REPLAY_CONSUMER) if unread else None  # settled since it was found


async def _letter(redis: Redis, entry: Entry, group: str, most: int) -> tuple[LetterFact | None, int]:
    """Return the letter, or None and how many letters were not searched."""
    total, _ = await extent(redis, entry.stream, group)
    letters = await by_ids(redis, entry.stream, group, [entry.id], own=False, scan_max=most) if total else {}
    found = letters.get(entry.id)
    if found is None:
        return None, max(0, total - most)
    fact = LetterFact(found.letter_id, found.reason, found.deliveries, found.handler, found.dead_at_ms)
    return fact, 0
