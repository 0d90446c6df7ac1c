"""Dead letters over HTTP: list, read, replay and drop.

The same routes exist for one group and for all groups of a stream; the list also for all groups that have handlers.
"""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from supervisor.core.dead_letter import Filter, Letter
from supervisor.fastapi import RedisDep

from .access import audited
from .dead_letter_query import (
    CURSOR_SCHEMA,
    SCAN_S,
    Cursor,
    GroupSelection,
    Selection,
    filter_of_query,
    parse_cursor,
    scan,
)
from .dead_letter_responses import Verb, change, delete, only, page, pairs_of, read
from .overview_routes import redis_status_of
from .read_route import ReadRoute
from .replies import EXAMPLE_LETTER, ChangedLetters, DeadLetterPage
from .root_path import link
from .schemas import (
    COUNT_MAX,
    Bound,
    EntryId,
    Group,
    Name,
    Stream,
    answers,
    json_response,
    only_json,
    problems,
    stream_path,
)
from .service import ServiceDep


class _ScanRoute(ReadRoute):
    """A scan of letters ends by itself after SCAN_S, and says where to go on."""

    extra_s = SCAN_S


router = APIRouter(prefix="/v1", tags=["dead letters"], route_class=_ScanRoute)
FilterDep = Annotated[Filter, Depends(filter_of_query)]
Count = Annotated[int, Query(ge=1, le=COUNT_MAX, description="The greatest number, the oldest first")]
CursorParam = Annotated[
    str | None, Query(description="Where to continue: `next` of an answer", json_schema_extra=CURSOR_SCHEMA)
]
OnlyGroup = Annotated[Name | None, Query(description="Only of this group")]
_READ = ("invalid", "wrong-type", "redis-unavailable")
_CHANGE = (
    "malformed-json", "not-found", "wrong-type", "body-too-large", "media-type", "invalid", "redis-unavailable",
    "outcome-unknown",
)  # fmt: skip
_GONE = ("not-found", "ambiguous", "wrong-type", "invalid", "redis-unavailable", "outcome-unknown")
_LIST_TEXT = """The oldest first. `next` is the address of the next page, null after the last one.
A page of large letters ends at about 2 MB.

`total` is the number of dead letters. A request scans a bounded number of them: `scanned` says how many, and
`matching` how many of these match the filter. `complete` is true when the scan has reached the end. Without a filter
`matching` counts all."""
_CHANGE_TEXT = """The body selects the dead letters: `ids` (of letters, else of messages), filters, or `{"all": true}`.

A request changes a bounded number of them. `next` is the body of the request that continues, null when nothing is
left; letters that were added in the meantime are left alone. `outcomes` has the result for each letter. A letter that
could not be changed stays, except where the outcome is `gone` or `not-found`."""


def _add_change(verb: Verb, summary: str, description: str) -> None:
    """Add the routes that replay or drop the dead letters of a group, and of all groups of a stream."""

    async def of_group(
        request: Request, stream: Stream, group: Group, selection: GroupSelection, redis: RedisDep
    ) -> Response:
        with audited(request, f"dead:{verb}", stream=stream, group=group):
            return await change(redis, verb, [(stream, only(group, selection.group))], selection)

    async def of_stream(
        request: Request, stream: Stream, selection: Selection, service: ServiceDep, redis: RedisDep
    ) -> Response:
        pairs = await pairs_of(service, redis, stream, selection.group)
        with audited(request, f"dead:{verb}", stream=stream, group=selection.group):
            return await change(redis, verb, pairs, selection)

    for path, endpoint, whose, more in (
        ("/groups/{group:name}", of_group, "group", ""),
        ("", of_stream, "stream", " `group` in the body names one group."),
    ):
        router.post(
            f"/streams/{{stream:name}}{path}/dead:{verb}",
            operation_id=f"{verb}_dead_of_{whose}",
            summary=f"{summary} of a {whose}",
            description=f"{description}{more}\n\n{_CHANGE_TEXT}",
            responses=answers(ChangedLetters, *_CHANGE),
            dependencies=[Depends(only_json)],
        )(endpoint)


_add_change("replay", "Replay dead letters", "Each message returns to the group that gave it up, as if it were new.")
_add_change("drop", "Drop dead letters", "The letters are removed for good.")


# One group


@router.get(
    "/streams/{stream:name}/groups/{group:name}/dead",
    summary="Dead letters of a group",
    description=_LIST_TEXT,
    responses=answers(DeadLetterPage, *_READ),
)
async def list_dead_of_group(
    stream: Stream, group: Group, redis: RedisDep, wanted: FilterDep, start: Annotated[Bound, Query()] = "-",
    count: Count = 100,
) -> Response:  # fmt: skip
    """`start` is the id of the first letter."""
    pair = (stream, group)
    result = await scan(redis, [pair], wanted, count, Cursor(pair, start), tally=True)
    following = {"start": result.next.start} if result.next else None
    return page(result, wanted, count, f"{stream_path(stream)}/groups/{quote(group, safe=':')}/dead", following)


@router.get(
    "/streams/{stream:name}/groups/{group:name}/dead/{entry_id}",
    summary="One dead letter",
    responses=answers(Letter, *_GONE, content={"application/json": {"example": EXAMPLE_LETTER}}),
)
async def read_dead_of_group(stream: Stream, group: Group, entry_id: EntryId, redis: RedisDep) -> Response:
    """`entry_id` is the letter's id or its message's."""
    return json_response((await read(redis, [(stream, group)], entry_id)).as_dict())


@router.delete(
    "/streams/{stream:name}/groups/{group:name}/dead/{entry_id}",
    status_code=204,
    summary="Remove one dead letter of a group",
    responses=problems(*_GONE),
)
async def delete_dead_of_group(
    request: Request, stream: Stream, group: Group, entry_id: EntryId, redis: RedisDep
) -> Response:
    """`entry_id` is the letter's id or its message's."""
    with audited(request, "dead:drop", stream=stream, group=group, id=entry_id):
        return await delete(redis, [(stream, group)], entry_id)


# All groups of a stream


@router.get(
    "/streams/{stream:name}/dead",
    summary="Dead letters of a stream's groups",
    description=_LIST_TEXT,
    responses=answers(DeadLetterPage, *_READ),
)
async def list_dead_of_stream(
    stream: Stream, service: ServiceDep, redis: RedisDep, wanted: FilterDep, group: OnlyGroup = None,
    count: Count = 100, cursor: CursorParam = None,
) -> Response:  # fmt: skip
    """The groups follow each other in the order of their names."""
    pairs = await pairs_of(service, redis, stream, group)
    result = await scan(redis, pairs, wanted, count, parse_cursor(cursor), tally=True)
    following = {"cursor": result.next.encode()} | ({"group": group} if group else {}) if result.next else None
    return page(result, wanted, count, f"{stream_path(stream)}/dead", following)


@router.delete(
    "/streams/{stream:name}/dead/{entry_id}",
    status_code=204,
    summary="Remove one dead letter",
    responses=problems(*_GONE),
)
async def delete_dead_of_stream(
    request: Request, stream: Stream, entry_id: EntryId, service: ServiceDep, redis: RedisDep,
    group: OnlyGroup = None,
) -> Response:  # fmt: skip
    """`entry_id` is the letter's id or its message's. 409: several groups have such a letter; name one with `group`."""
    pairs = await pairs_of(service, redis, stream, group)
    with audited(request, "dead:drop", stream=stream, group=group, id=entry_id):
        return await delete(redis, pairs, entry_id)


# All groups that have handlers


@router.get(
    "/dead",
    summary="Dead letters of all groups that have handlers",
    description=_LIST_TEXT,
    responses=answers(DeadLetterPage, *_READ),
)
async def list_dead(
    service: ServiceDep, redis: RedisDep, wanted: FilterDep, count: Count = 100, cursor: CursorParam = None
) -> Response:
    """The groups follow each other in the order of their names."""
    result = await scan(redis, (await redis_status_of(service)).pairs, wanted, count, parse_cursor(cursor), tally=True)
    return page(result, wanted, count, link("/v1/dead"), {"cursor": result.next.encode()} if result.next else None)
