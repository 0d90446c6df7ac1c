"""Looks up what Redis holds of one entry, in its stream and in each group, at a bounded cost.

A group's facts come from one script, so a message that is settled meanwhile shows either as before or as after. Its
dead letter is looked up afterwards: if nothing was pending any more, the letter was written by then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from supervisor.broker import inspect
from supervisor.broker.dead_letters import by_ids, extent
from supervisor.broker.scripts import ENTRY_FACTS
from supervisor.core.entry_fate import Entry, GroupFacts, LetterFact
from supervisor.core.records import parse_number, parse_retry
from supervisor.keys import crashes_key, retries_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis

#: Dead letters of a group that are searched; the number left out is reported.
LETTERS_MAX = 5_000
#: Copies of replayed messages of a group that are searched.
COPIES_MAX = 1_000
#: Undelivered entries before it that are counted.
BEFORE_MAX = inspect.LAG_COUNT_MAX


async def collect(
    redis: Redis, stream: str, entry_id: str, groups: Iterable[str] = (), *, letters_max: int = LETTERS_MAX
) -> tuple[Entry, list[GroupFacts]]:
    """Return the facts of an entry, for the stream's groups and those in `groups`.

    `entry_id` has both parts. At most `letters_max` dead letters of each group are searched. Raises redis-py's errors,
    also for a key that is no stream.
    """
    (info,) = await inspect.streams(redis, [stream])
    stored = bool(await redis.xrange(stream, entry_id, entry_id)) if info.exists else False
    seconds, micros = await redis.time()
    entry = Entry(
        stream=stream,
        id=entry_id,
        exists=info.exists,
        stored=stored,
        first_id=info.first_id,
        last_id=info.last_id,
        now_ms=int(seconds) * 1000 + int(micros) // 1000,
    )
    names = sorted({*groups, *info.groups})
    return entry, [await _facts(redis, entry, name, letters_max) for name in names]


async def _facts(redis: Redis, entry: Entry, group: str, letters_max: int) -> GroupFacts:
    keys = [entry.stream, retries_key(entry.stream, group), crashes_key(entry.stream, group)]
    found: Any = await redis.eval(ENTRY_FACTS.text, len(keys), *keys, group, entry.id, BEFORE_MAX + 2)
    last, pending, retry, crashes, unread = found
    record = parse_retry(retry)
    _, consumer, idle_ms, deliveries = pending or (b"", b"", 0, 0)
    letter, left = (None, 0) if pending else await _letter(redis, entry, group, letters_max)
    before = max(0, unread - entry.stored)
    facts = GroupFacts(
        group=group,
        last_delivered=last.decode() or None,
        before=min(before, BEFORE_MAX),
        before_at_least=before > BEFORE_MAX,
        consumer=consumer.decode(errors="backslashreplace"),
        idle_ms=idle_ms,
        deliveries=deliveries,
        attempts=record.attempts if record else 0,
        next_due_ms=record.due_ms if record else None,
        crashes=parse_number(crashes) or 0,
        letter=letter,
        letters_left=left,
    )
    return facts if entry.stored or pending or letter else await _with_copy(redis, entry, facts)


async def _with_copy(redis: Redis, entry: Entry, facts: GroupFacts) -> GroupFacts:
    """Return the facts of the copy that was replayed in place of a trimmed entry, if there is one."""
    copies = await inspect.copies_of(redis, entry.stream, facts.group, COPIES_MAX)
    copy = next((one for one in copies if one.id == entry.id), None)
    if copy is None:
        return facts
    return replace(
        facts,
        consumer=copy.consumer,
        idle_ms=copy.idle_ms,
        deliveries=copy.deliveries,
        attempts=copy.attempts,
        next_due_ms=copy.next_due_ms,
    )


async def _letter(redis: Redis, entry: Entry, group: str, most: int) -> tuple[LetterFact | None, int]:
    """Return the letter, or None and how many letters were not searched."""
    total, _ = await extent(redis, entry.stream, group)
    letters = await by_ids(redis, entry.stream, group, [entry.id], own=False, scan_max=most) if total else {}
    found = letters.get(entry.id)
    if found is None:
        return None, max(0, total - most)
    fact = LetterFact(found.letter_id, found.reason, found.deliveries, found.handler, found.dead_at_ms)
    return fact, 0
