"""Replays, drops and lists the selected dead letters, and builds the answers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import urlencode

from fastapi.responses import Response
from redis.asyncio import Redis

from supervisor.broker import inspect
from supervisor.broker.dead_letters import by_ids
from supervisor.broker.redis_errors import code_of
from supervisor.broker.replay import Outcome, drop, replay
from supervisor.core.dead_letter import Filter, Letter

from .dead_letter_query import SCAN_MAX, Pair, ScanResult, Selection, parse_cursor, scan
from .overview_routes import redis_status_of
from .problems import Problem, of_code, pointer_of, unknown_when_lost
from .schemas import json_response
from .service import Service

Verb = Literal["replay", "drop"]
_ACTIONS = {"replay": replay, "drop": drop}


async def pairs_of(service: Service, redis: Redis, stream: str, group: str | None) -> list[Pair]:
    """Return the named group, or all groups of the stream: those with handlers and those that Redis knows."""
    if group is not None:
        return [(stream, group)]
    known = {name for handled, name in (await redis_status_of(service)).pairs if handled == stream}
    [info] = await inspect.streams(redis, [stream])
    return sorted((stream, name) for name in known.union(info.groups))


def only(group: str, named: str | None) -> str:
    """Return the group of the address. Raises Problem when the body names another."""
    if named not in (None, group):
        detail = f"the address names group {group!r}, the body {named!r}"
        raise Problem("invalid", detail, errors=[{"pointer": pointer_of("group"), "detail": detail}])
    return group


def page(result: ScanResult, wanted: Filter, count: int, address: str, following: Mapping[str, str] | None) -> Response:
    """Build a page of letters; `following` is the query that leads to the next page."""
    link = f"{address}?{urlencode({**_query(wanted), 'count': count, **following})}" if following else None
    return json_response(
        {
            "letters": [letter.as_dict() for letter in result.letters],
            "total": result.total,
            "scanned": result.scanned,
            "matching": result.matching,
            "complete": result.complete,
            "next": link,
        }
    )


def _query(wanted: Filter) -> dict[str, str]:
    given = {"reason": wanted.reason, "handler": wanted.handler, "text": wanted.text}
    given["older_s"] = f"{wanted.older_than_ms / 1000:.15g}" if wanted.older_than_ms else ""
    return {name: value for name, value in given.items() if value}


async def read(redis: Redis, pairs: Sequence[Pair], entry_id: str) -> Letter:
    """Return the letter with this id or of the message with this id. Raises Problem unless exactly one group has it."""
    letters = [
        letter for pair in pairs for letter in (await by_ids(redis, *pair, [entry_id], scan_max=SCAN_MAX)).values()
    ]
    if not letters:
        raise Problem(
            "not-found",
            f"no dead letter {entry_id}. For a message's id, only the first {SCAN_MAX:,} letters after it are searched;"
            " use the letter's own id, or list with `text`",
        )
    if len(letters) > 1:
        names = ", ".join(letter.group for letter in letters)
        raise Problem(
            "ambiguous", f"the groups {names} have a dead letter {entry_id}; name one: ?group={letters[0].group}"
        )
    return letters[0]


async def delete(redis: Redis, pairs: Sequence[Pair], entry_id: str) -> Response:
    """Remove one letter. Raises Problem unless exactly one group has it."""
    [outcome] = await _carry_out(redis, "drop", [await read(redis, pairs, entry_id)])
    _raise_if_all_failed([outcome])
    if outcome.outcome == "gone":
        raise Problem("not-found", f"the dead letter {entry_id} was removed in the meantime")
    return Response(status_code=204)


async def change(redis: Redis, verb: Verb, pairs: Sequence[Pair], selection: Selection) -> Response:
    """Replay or drop the selected letters, and answer with the outcome of each."""
    cursor = parse_cursor(selection.cursor)
    if selection.ids is not None:
        result, missing = await _named(redis, pairs, selection.ids)
    else:
        result, missing = await scan(redis, pairs, selection.filter, selection.count, cursor), []
    outcomes = await _carry_out(redis, verb, result.letters)
    _raise_if_all_failed(outcomes)
    entries = [
        {"stream": outcome.letter.stream, "group": outcome.letter.group, **outcome.as_dict()} for outcome in outcomes
    ] + [{"id": id_, "outcome": "not-found"} for id_ in missing]
    body = selection.model_dump(exclude_defaults=True)
    return json_response(
        {
            "outcomes": entries,
            "counts": Counter(entry["outcome"] for entry in entries),
            "total": result.total,
            "scanned": result.scanned,
            "next": {**body, "cursor": result.next.encode()} if result.next else None,
        }
    )


async def _carry_out(redis: Redis, verb: Verb, letters: Sequence[Letter]) -> list[Outcome]:
    """Raise Problem when the connection is lost: what was done until then is not known."""
    with unknown_when_lost("some may be done. Repeat the request for those that are still listed"):
        return await _ACTIONS[verb](redis, letters)


async def _named(redis: Redis, pairs: Sequence[Pair], ids: Sequence[str]) -> tuple[ScanResult, list[str]]:
    """Return the letters with these ids in all groups, and the ids without a letter."""
    result = ScanResult(total=0)
    missing = set(ids)
    for pair in pairs:
        named = await by_ids(redis, *pair, ids, scan_max=SCAN_MAX)
        result.letters += {letter.letter_id: letter for letter in named.values()}.values()
        missing -= named.keys()
    result.total = result.scanned = result.matching = len(result.letters)
    return result, sorted(missing)


def _raise_if_all_failed(outcomes: Sequence[Outcome]) -> None:
    """Raise Problem when all failed: the fault is then Redis's or the request's, not that of a letter."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors and len(errors) == len(outcomes):
        raise of_code(code_of(errors[0]), str(errors[0]))
