"""`supervisor explain`: the state of one message in each group."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import TEXT, command, dumps, json_option, talk, with_settings
from supervisor.cli.tables import table_text
from supervisor.core.entry_fate import Entry, GroupFacts, LaterFact, Presence, TurnFact, Verdict
from supervisor.core.entry_fate import explain as judge
from supervisor.core.ids import normalize_id
from supervisor.core.later import moment
from supervisor.core.origin import Origin, OriginKind
from supervisor.core.reclaim import foreign_text
from supervisor.errors import EXIT_FAILED, EXIT_OK, HandlerError
from supervisor.keys import RATES_CONSUMER, REPLAY_CONSUMER, TURNS_CONSUMER
from supervisor.text import counted, duration_text

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from supervisor.settings.load import Loaded

#: How many entries are named; `--json` has more.
_SHOWN = 5


@command(
    """\
    supervisor explain 1764000000000-0                      the handlers' streams
    supervisor explain 1764000000000-0 events:user_created  one stream
    supervisor explain 3f0c8a52b1d94e6f7a0b1c2d reports     a message for later
    supervisor explain 1764000000000-0 --json""",
    short_help="Show what happened to one message.",
)
@click.argument("id_", type=TEXT, metavar="ID")
@click.argument("stream", type=TEXT, required=False)
@with_settings
@json_option
def explain(loaded: Loaded, id_: str, stream: str | None, as_json: bool) -> int:
    """Show the state of a message in each group: not delivered yet, in hand or waiting for a retry (and which consumer
    has it), done, or a dead letter (and why). It also shows whether the message was published later, by a schedule, by
    Emit or from the outbox, and what its handlers have published by Emit. ID may be that of a message for later: it
    waits, was cancelled, or has entered its stream. Exits with 1 when Redis knows nothing of the message.

    A message counts as done when the group has passed it and does not hold it; so do messages from before the group's
    start. When the entry is no longer in the stream, it may have been done or deleted unread: Redis can't tell.
    """
    import asyncio

    verdicts = asyncio.run(_explain(loaded, id_, stream))
    if as_json:
        click.echo(dumps([verdict.as_dict() for verdict in verdicts], pretty=True))
    else:
        known = [verdict for verdict in verdicts if verdict.known] or verdicts
        click.echo("\n\n".join(map(_text, known)))
        _hint_at_letters(known)
        if strangers := {one.facts.consumer for verdict in known for one in verdict.groups if one.facts.foreign}:
            claim_after_s = loaded.settings.consumer.claim_foreign_after_s
            talk(f"messages of {', '.join(sorted(strangers))}: {foreign_text(claim_after_s)}")
    return EXIT_OK if any(verdict.known for verdict in verdicts) else EXIT_FAILED


async def _explain(loaded: Loaded, id_: str, stream: str | None) -> list[Verdict]:
    from supervisor.cli.known_names import handled_pairs, require_stream
    from supervisor.cli.redis_client import open_redis

    try:
        pairs = await handled_pairs(loaded)
    except HandlerError:
        if stream is None:
            raise
        pairs = []  # a named stream needs no handlers
    groups: dict[str, list[str]] = {stream: []} if stream else {}
    for name, group in pairs:
        if stream in (None, name):
            groups.setdefault(name, []).append(group)
    async with open_redis(loaded.settings) as redis:
        try:
            entry_id = normalize_id(id_)
        except ValueError:
            later = await _explain_later(redis, id_, groups, everywhere=stream is None)
            return [verdict for verdict in later if verdict.known] or later
        if stream:
            await require_stream(loaded, redis, stream)
        verdicts = await _explain_entry(redis, entry_id, groups)
        if any(verdict.known for verdict in verdicts):
            return verdicts
        later = await _explain_later(redis, id_, groups, everywhere=stream is None)
        return [verdict for verdict in later if verdict.known] or verdicts


async def _explain_entry(redis: Redis, entry_id: str, groups: Mapping[str, Sequence[str]]) -> list[Verdict]:
    from supervisor.broker.entry_lookup import collect
    from supervisor.cli.redis_client import read_each

    async def read(name: str) -> Verdict:
        return judge(*await collect(redis, name, entry_id, groups[name]))

    return await read_each(sorted(groups), read)


async def _explain_later(
    redis: Redis, later_id: str, groups: Mapping[str, Sequence[str]], *, everywhere: bool
) -> list[Verdict]:
    """Look for a message for later; `everywhere`: also in streams without a handler."""
    from supervisor.broker.entry_lookup import collect_later
    from supervisor.broker.later_set import noted_streams

    names = {*groups, *(await noted_streams(redis) if everywhere else ())}
    return [judge(*await collect_later(redis, name, later_id, groups.get(name, ()))) for name in sorted(names)]


def _text(verdict: Verdict) -> str:
    rows = [[one.facts.group, one.fate.value, _details(verdict.entry, one.facts)] for one in verdict.groups]
    lines = [f"{verdict.entry.stream} {verdict.entry.id}: {_where(verdict)}"]
    lines += [_origin_text(verdict.entry.origin)] if verdict.entry.origin else []
    if rows and (verdict.known or verdict.presence is Presence.GONE):
        lines += ["", table_text(["group", "state", "details"], rows)]
    return "\n".join(lines)


def _where(verdict: Verdict) -> str:
    """Describe the entry itself."""
    entry = verdict.entry
    if entry.later is not None:
        return _later_text(entry.later, entry.now_ms)
    if verdict.presence is Presence.STORED:
        age_s = (entry.now_ms - int(entry.id.partition("-")[0])) / 1000
        return f"in the stream, {duration_text(max(0.0, age_s))} old"
    if verdict.presence is Presence.GONE:
        first = f"it begins at {entry.first_id}" if entry.first_id else "it is empty"
        return f"not in the stream ({first}): trimmed, deleted, or never there"
    if verdict.presence is Presence.NOT_PUBLISHED:
        return f"not published yet: the stream's last id is {entry.last_id or '0-0'}"
    return "there is no such stream"


def _later_text(later: LaterFact, now_ms: int) -> str:
    """Describe a message for later that is not in its stream."""
    if later.cancelled_ms is not None:
        return f"a message for later, cancelled {duration_text(max(0, now_ms - later.cancelled_ms) / 1000)} ago"
    if later.error:
        return f"a message for later that is never published: malformed: {later.error}"
    if later.due_ms is None:
        return (
            "neither the id of an entry, such as 1764000000000-0, nor of a message for later that waits, or that was"
            " cancelled or published lately"
        )
    due = moment(later.due_ms).astimezone().isoformat(sep=" ", timespec="seconds")
    left_s = (later.due_ms - now_ms) / 1000
    when = f"in {duration_text(left_s)}" if left_s > 0 else f"overdue for {duration_text(-left_s)}"
    return f"a message for later, {Presence.LATER.value}: {due} ({when})"


def _origin_text(origin: Origin) -> str:
    """Describe what published an entry."""
    match origin.kind:
        case OriginKind.LATER:
            return f"published later, as {origin.later}"
        case OriginKind.SCHEDULE:
            tick = moment(origin.tick_ms).astimezone().isoformat(sep=" ", timespec="seconds") if origin.tick_ms else ""
            return f"published by the schedule {origin.schedule}, {f'tick {tick}' if tick else 'run by hand'}"
        case OriginKind.OUTBOX:
            return f"published from the outbox, row key {origin.row}"
        case OriginKind.EMIT:
            shown = ", ".join(origin.ids[:_SHOWN])
            more = f" and {len(origin.ids) - _SHOWN} more" if len(origin.ids) > _SHOWN else ""
            return f"emitted by group {origin.group} from {origin.stream} {shown}{more}"


def _details(entry: Entry, facts: GroupFacts) -> str:
    details = []
    if facts.consumer == REPLAY_CONSUMER:
        details.append("no worker has read it yet")
    elif facts.consumer == TURNS_CONSUMER:
        details.append(_turn_text(facts.turn))
    elif facts.consumer == RATES_CONSUMER:
        due_s = ((facts.next_due_ms or 0) - entry.now_ms) / 1000
        details.append(f"due in {duration_text(max(0.0, due_s))}")
    elif facts.consumer:
        whose = " (a consumer of no pool)" if facts.foreign else ""
        details.append(f"with {facts.consumer}{whose} for {duration_text(facts.idle_ms / 1000)}")
        details += [f"{counted(facts.attempts, 'attempt')} failed"] if facts.attempts else []
        due_s = ((facts.next_due_ms or 0) - entry.now_ms) / 1000
        details += [f"next attempt in {duration_text(due_s)}"] if due_s > 0 else []
    elif facts.letter:
        age_s = max(0.0, (entry.now_ms - facts.letter.dead_at_ms) / 1000)
        details.append(f"{facts.letter.reason} ({duration_text(age_s)} ago, letter {facts.letter.letter_id})")
    elif facts.before:
        details.append(f"{'at least ' if facts.before_at_least else ''}{facts.before:,} before it")
    if facts.emitted:
        more = f" and {len(facts.emitted) - _SHOWN} more" if len(facts.emitted) > _SHOWN else ""
        details.append(f"emitted {', '.join(map(' '.join, facts.emitted[:_SHOWN]))}{more}")
    details += [f"its worker crashed with it {counted(facts.crashes, 'time')}"] if facts.crashes else []
    details += (
        [f"unless it is among {facts.letters_left:,} dead letters that were not scanned"] if facts.letters_left else []
    )
    return ", ".join(details)


def _turn_text(turn: TurnFact | None) -> str:
    """Describe which message another one waits for."""
    if turn is None or not turn.holders:
        return "others come first"
    halted = [id_ for id_, consumer in turn.holders if consumer == "halted"]
    holders = ", ".join(f"{id_} with {consumer or 'no worker'}" for id_, consumer in turn.holders)
    key = "" if turn.key is None else f"key {turn.key}: "
    before = f", {turn.before:,} wait before it" if turn.before else ""
    if halted:
        return f"{key}stopped by the dead letter of {halted[0]} until it is replayed or dropped{before}"
    return f"{key}it is the turn of {holders}{before}"


def _hint_at_letters(verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        for one in verdict.groups:
            if one.facts.letter and not one.facts.consumer:
                words: list[Any] = ["supervisor", "dead", "show", verdict.entry.stream, one.facts.group]
                talk(f"the whole letter: {shlex.join([*words, one.facts.letter.letter_id])}")
