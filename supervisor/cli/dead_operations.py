"""The operations behind `supervisor dead`: find dead letters page by page, list, replay or drop them.

A group may have a million dead letters. Only those in a printed table or named by their ids are held in memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from supervisor.broker.dead_letters import by_ids, extent, pages
from supervisor.broker.replay import DROPPED, REPLAYED, WORDS, Outcome, drop, replay
from supervisor.cli.common import dumps, report, talk
from supervisor.cli.filter_hint import FilterHint
from supervisor.cli.known_names import handled_pairs, require_group, require_stream
from supervisor.cli.redis_client import open_redis
from supervisor.cli.tables import table_text
from supervisor.core.dead_letter import Filter, Letter
from supervisor.errors import EXIT_FAILED, EXIT_OK, SupervisorError, UsageError
from supervisor.text import counted, duration_text

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from supervisor.settings.load import Loaded

#: `supervisor dead show` prints the whole reason.
REASON_CHARACTERS = 60
#: Time between two lines about the progress.
PROGRESS_S = 2.0
_ACTIONS = {"replay": (replay, REPLAYED), "drop": (drop, DROPPED)}


@dataclass(frozen=True, slots=True)
class Work:
    """The dead letters to change: those that are named, or those of a group that match a filter, up to `end`."""

    stream: str
    group: str
    count: int
    named: Sequence[Letter] = ()
    wanted: Filter = field(default_factory=Filter)
    #: The last letter at the time they were counted; the user did not confirm later ones.
    end: str = ""
    now_ms: int = 0


class ProgressLine:
    """Prints the progress of long work now and then."""

    def __init__(self, did: str, total: int) -> None:
        self._did = did
        self._total = total
        self._next_s = time.monotonic() + PROGRESS_S

    def __call__(self, count: int) -> None:
        """Note that `count` are done."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + PROGRESS_S
            talk(f"{self._did} {count:,} of {self._total:,}")


async def list_letters(
    loaded: Loaded, named: tuple[str | None, str | None], wanted: Filter, count: int, *, as_json: bool
) -> None:
    """Print the first `count` that match, and how many match in all."""
    shown: list[Letter] = []
    printed = total = 0
    hint = FilterHint(wanted)
    async with open_redis(loaded.settings) as redis:
        for pair in await _pairs(loaded, redis, *named):
            matching = 0
            async for page in _matching_pages(
                redis, pair, wanted, hint, most=count - printed if wanted.empty else None
            ):
                chosen = page[: count - printed]
                printed += len(chosen)
                matching += len(page)
                if as_json:
                    click.echo("".join(dumps(letter.as_dict()) + "\n" for letter in chosen), nl=False)
                else:
                    shown += chosen
            total += (await extent(redis, *pair))[0] if wanted.empty else matching
    if not as_json:
        _print(shown, with_stream=named[0] is None)
        talk(counted(total, "dead letter") + (f", {printed:,} shown" if total > printed else ""))
    if not total:
        hint.tell()


async def named_letters(loaded: Loaded, stream: str, group: str, ids: Sequence[str]) -> list[Letter]:
    """Return the dead letters with these ids, their own or their messages'. Raises UsageError for an unknown id."""
    async with open_redis(loaded.settings) as redis:
        await require_group(loaded, redis, stream, group)
        letters = await by_ids(redis, stream, group, ids, alone=True)
    missing = [id_ for id_ in ids if id_ not in letters]
    if missing:
        raise UsageError(f"no dead letter {missing[0]!r} of {stream} {group}; `supervisor dead list` shows all")
    return list({letter.letter_id: letter for letter in letters.values()}.values())


async def choose(loaded: Loaded, stream: str, group: str, ids: Sequence[str], wanted: Filter) -> Work:
    """Return the letters to change, and how many there are. Raises UsageError."""
    if ids:
        named = await named_letters(loaded, stream, group, ids)
        return Work(stream, group, len(named), named)
    now_ms = int(time.time() * 1000)
    async with open_redis(loaded.settings) as redis:
        await require_group(loaded, redis, stream, group)
        count, end = await extent(redis, stream, group)
        if not wanted.empty:
            count, hint = 0, FilterHint(wanted)
            async for page in _matching_pages(redis, (stream, group), wanted, hint, end=end, now_ms=now_ms):
                count += len(page)
            if not count:
                hint.tell()
    return Work(stream, group, count, (), wanted, end, now_ms)


async def carry_out(loaded: Loaded, verb: str, work: Work, *, as_json: bool) -> int:
    """Replay or drop the letters; return the exit code."""
    act, done = _ACTIONS[verb]
    progress = ProgressLine(done, work.count)
    tried = count = asked = 0
    async with open_redis(loaded.settings) as redis:
        try:
            async for page in _pages_of(redis, work):
                asked = len(page)
                outcomes = await act(redis, page)
                asked = 0
                tried += len(outcomes)
                count += sum(outcome.outcome == done for outcome in outcomes)
                _print_outcomes(outcomes, as_json=as_json)
                progress(count)
        finally:
            talk(f"{count:,} {done}")
            if asked:
                talk(f"no answer for up to {asked:,} more: some may be {done}; the command can be run again")
    return EXIT_OK if count == tried else EXIT_FAILED


async def _pages_of(redis: Redis, work: Work) -> AsyncIterator[Sequence[Letter]]:
    if work.named:
        yield work.named
        return
    async for page in _matching_pages(redis, (work.stream, work.group), work.wanted, end=work.end, now_ms=work.now_ms):
        yield page


async def _matching_pages(
    redis: Redis,
    pair: tuple[str, str],
    wanted: Filter,
    hint: FilterHint | None = None,
    *,
    end: str = "+",
    now_ms: int = 0,
    most: int | None = None,
) -> AsyncIterator[list[Letter]]:
    """Yield the matching letters of each page; stop after `most` letters were scanned."""
    now_ms = now_ms or int(time.time() * 1000)
    progress = ProgressLine("scanned", (await extent(redis, *pair))[0])
    looked = 0
    if most == 0:
        return
    async for page in pages(redis, *pair, end=end):
        if hint is not None:
            hint.look(page)
        yield [letter for letter in page if wanted.fits(letter, now_ms)]
        looked += len(page)
        progress(looked)
        if most is not None and looked >= most:
            return


async def _pairs(loaded: Loaded, redis: Redis, stream: str | None, group: str | None) -> list[tuple[str, str]]:
    if stream and group:
        await require_group(loaded, redis, stream, group)
        return [(stream, group)]
    if stream:
        await require_stream(loaded, redis, stream)
    pairs = [pair for pair in await handled_pairs(loaded) if stream in (None, pair[0])]
    if not pairs:
        raise UsageError(f"no handler here reads {stream!r}; name its group too" if stream else "there are no handlers")
    return pairs


def _print_outcomes(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """Print the outcome of each letter. Raises SupervisorError when Redis refused all: it would refuse the rest too."""
    for outcome in outcomes:
        letter = outcome.letter
        if as_json:
            report(dumps(outcome.as_dict()))
        elif outcome.outcome in ("gone", "no-id"):
            talk(f"the letter {letter.letter_id} {WORDS[outcome.outcome]}")
        elif outcome.outcome in WORDS:
            talk(f"{letter.id} {WORDS[outcome.outcome]}" + (f": {outcome.error}" if outcome.error else ""))
    if outcomes and all(outcome.error for outcome in outcomes):
        raise SupervisorError(f"Redis refused: {outcomes[0].error}; the letters are kept")


def _clipped(reason: str) -> str:
    """Return the beginning of a reason that is too long for a list on a terminal, with a sign that more follows."""
    if len(reason) <= REASON_CHARACTERS or not sys.stdout.isatty():
        return reason
    return f"{reason[: REASON_CHARACTERS - 1]}…"


def _print(letters: Sequence[Letter], *, with_stream: bool) -> None:
    """Print one line for each letter. The id of the message is enough for `show`, so the letter's id may be dropped."""
    now_s = time.time()
    rows = [
        [
            letter.letter_id,
            letter.id,
            *([letter.stream] if with_stream else []),
            letter.group,
            duration_text(max(0.0, now_s - letter.dead_at_ms / 1000) if letter.dead_at_ms else None),
            str(letter.deliveries),
            letter.handler.rpartition(".")[2],
            _clipped(letter.reason),
        ]
        for letter in letters
    ]
    if rows:
        columns = ["letter", "message", *(["stream"] if with_stream else []), "group"]
        columns += ["age", "deliveries", "handler", "reason"]
        whole, drop = ["letter", "message", "stream", "group"], ["letter", "deliveries", "handler"]
        click.echo(table_text(columns, rows, numbers=["age", "deliveries"], whole=whole, drop=drop))
