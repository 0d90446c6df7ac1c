"""Dead letters over HTTP: found by what they say, put back to their own group, removed.

The same for one group, for all groups of a stream, and for all groups that have handlers here.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query
from fastapi.responses import Response

from supervisor.core.dead_letter import Filter
from supervisor.fastapi import RedisDep

from .dead_letter_query import COUNT_MAX, Cursor, GroupName, Selection, filter_of_query, parse_cursor, scan
from .dead_letter_responses import change, delete, only, page, pairs_of, read
from .overview_routes import handled_groups
from .schemas import EXAMPLE_ID, Bound, EntryId, Group, Stream, json_response, only_json, problems, stream_path
from .service import ServiceDep

router = APIRouter(prefix="/v1", tags=["dead letters"])
FilterDep = Annotated[Filter, Depends(filter_of_query)]
Count = Annotated[int, Query(ge=1, le=COUNT_MAX, description="At most so many, the oldest first")]
CursorParam = Annotated[str | None, Query(description="Where to go on; only from `next` of an answer")]
OnlyGroup = Annotated[GroupName | None, Query(description="Only of this group")]
_LETTER = {
    "letter_id": "1764000000123-0", "stream": "events:user_created", "group": "email_workers", "id": EXAMPLE_ID,
    "reason": "failed 5 times, the last time with TimeoutError", "deliveries": 5, "handler": "handlers.mail.send",
    "worker": "web-1:0", "dead_at_ms": 1764000000123, "error": "TimeoutError", "traceback": "",
    "signal": "", "exit_code": None, "stack": "",
    "fields": {"user_id": "1"},
}  # fmt: skip
_PAGE = {"letters": [_LETTER], "total": 1, "scanned": 1, "matching": 1, "complete": True, "next": None}
_OUTCOME = {name: _LETTER[name] for name in ("stream", "group", "letter_id", "id")} | {"outcome": "replayed"}
_CHANGED = {"outcomes": [_OUTCOME], "counts": {"replayed": 1}, "total": 1, "scanned": 1, "next": None}
_READ = problems("invalid", "wrong-type", "redis-unavailable")
_CHANGE = problems(
    "malformed-json", "not-found", "wrong-type", "body-too-large", "media-type", "invalid", "redis-unavailable",
    "outcome-unknown",
)  # fmt: skip
_GONE = problems("not-found", "ambiguous", "wrong-type", "invalid", "redis-unavailable", "outcome-unknown")
_LIST_TEXT = """The oldest first. `next` is the address of the following page, null after the last one.

`total` is how many letters there are, `scanned` at how many of them this answer has looked, `matching` how many of
those are meant: all that there are from here on where `complete` is true, and without a filter all of them. One
request looks at a bounded number."""
_CHANGE_TEXT = """The body says which are meant: `ids` (of letters, else of messages), filters, or `{"all": true}`.

One request takes a bounded number of letters. `next` is the body of the request that goes on, null when there is
nothing left; letters that came in meanwhile are left alone. `outcomes` says of each letter what became of it: all
but `gone` and `not-found` are kept where they could not be changed."""


def _ok(example: Any) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": example}}}}


# One group


@router.get(
    "/streams/{stream:path}/groups/{group:path}/dead",
    operation_id="list_dead_of_group",
    summary="Dead letters of a group",
    description=_LIST_TEXT,
    responses=_ok(_PAGE) | _READ,
)
async def list_of_group(
    stream: Stream, group: Group, redis: RedisDep, meant: FilterDep, start: Annotated[Bound, Query()] = "-",
    count: Count = 100,
) -> Response:  # fmt: skip
    """`start`: the first letter's id."""
    pair = (stream, group)
    found = await scan(redis, [pair], meant, count, Cursor(pair, start), tally=True)
    following = {"start": found.next.start} if found.next else None
    return page(found, meant, count, f"{stream_path(stream)}/groups/{quote(group, safe=':')}/dead", following)


@router.get(
    "/streams/{stream:path}/groups/{group:path}/dead/{entry_id}",
    operation_id="read_dead_of_group",
    summary="One dead letter",
    responses=_ok(_LETTER) | _GONE,
)
async def read_of_group(stream: Stream, group: Group, entry_id: EntryId, redis: RedisDep) -> Response:
    """By its own id or by its message's."""
    return json_response((await read(redis, [(stream, group)], entry_id)).as_dict())


@router.post(
    "/streams/{stream:path}/groups/{group:path}/dead:replay",
    operation_id="replay_dead_of_group",
    summary="Put messages of a group back",
    description=_CHANGE_TEXT,
    responses=_ok(_CHANGED) | _CHANGE,
    dependencies=[Depends(only_json)],
)
async def replay_of_group(stream: Stream, group: Group, selection: Selection, redis: RedisDep) -> Response:
    """As if they had never been tried, to this group and no other."""
    return await change(redis, "replay", [(stream, only(group, selection.group))], selection)


@router.post(
    "/streams/{stream:path}/groups/{group:path}/dead:drop",
    operation_id="drop_dead_of_group",
    summary="Remove dead letters of a group",
    description=_CHANGE_TEXT,
    responses=_ok(_CHANGED) | _CHANGE,
    dependencies=[Depends(only_json)],
)
async def drop_of_group(stream: Stream, group: Group, selection: Selection, redis: RedisDep) -> Response:
    """For good."""
    return await change(redis, "drop", [(stream, only(group, selection.group))], selection)


@router.delete(
    "/streams/{stream:path}/groups/{group:path}/dead/{entry_id}",
    status_code=204,
    operation_id="delete_dead_of_group",
    summary="Remove one dead letter of a group",
    responses=_GONE,
)
async def delete_of_group(stream: Stream, group: Group, entry_id: EntryId, redis: RedisDep) -> Response:
    """By its own id or by its message's."""
    return await delete(redis, [(stream, group)], entry_id)


# All groups of a stream


@router.get(
    "/streams/{stream:path}/dead",
    operation_id="list_dead_of_stream",
    summary="Dead letters of a stream's groups",
    description=_LIST_TEXT,
    responses=_ok(_PAGE) | _READ,
)
async def list_of_stream(
    stream: Stream, service: ServiceDep, redis: RedisDep, meant: FilterDep, group: OnlyGroup = None, count: Count = 100,
    cursor: CursorParam = None,
) -> Response:  # fmt: skip
    """Group by group."""
    pairs = await pairs_of(service, redis, stream, group)
    found = await scan(redis, pairs, meant, count, parse_cursor(cursor), tally=True)
    following = {"cursor": found.next.encode()} | ({"group": group} if group else {}) if found.next else None
    return page(found, meant, count, f"{stream_path(stream)}/dead", following)


@router.post(
    "/streams/{stream:path}/dead:replay",
    operation_id="replay_dead_of_stream",
    summary="Put messages of a stream's groups back",
    description=_CHANGE_TEXT,
    responses=_ok(_CHANGED) | _CHANGE,
    dependencies=[Depends(only_json)],
)
async def replay_of_stream(stream: Stream, selection: Selection, service: ServiceDep, redis: RedisDep) -> Response:
    """Each to the group that it came from; `group` in the body names one."""
    return await change(redis, "replay", await pairs_of(service, redis, stream, selection.group), selection)


@router.post(
    "/streams/{stream:path}/dead:drop",
    operation_id="drop_dead_of_stream",
    summary="Remove dead letters of a stream's groups",
    description=_CHANGE_TEXT,
    responses=_ok(_CHANGED) | _CHANGE,
    dependencies=[Depends(only_json)],
)
async def drop_of_stream(stream: Stream, selection: Selection, service: ServiceDep, redis: RedisDep) -> Response:
    """For good; `group` in the body names one group."""
    return await change(redis, "drop", await pairs_of(service, redis, stream, selection.group), selection)


@router.delete(
    "/streams/{stream:path}/dead/{entry_id}",
    status_code=204,
    operation_id="delete_dead_of_stream",
    summary="Remove one dead letter",
    responses=_GONE,
)
async def delete_of_stream(
    stream: Stream, entry_id: EntryId, service: ServiceDep, redis: RedisDep, group: OnlyGroup = None
) -> Response:
    """By its own id or by its message's; refused when more than one group has such a letter and none is named."""
    return await delete(redis, await pairs_of(service, redis, stream, group), entry_id)


# All that have handlers


@router.get(
    "/dead",
    operation_id="list_dead",
    summary="Dead letters of all groups that have handlers",
    description=_LIST_TEXT,
    responses=_ok(_PAGE) | _READ,
)
async def list_all(
    service: ServiceDep, redis: RedisDep, meant: FilterDep, count: Count = 100, cursor: CursorParam = None
) -> Response:
    """Group by group."""
    pairs = [(group["stream"], group["group"]) for group in await handled_groups(service)]
    found = await scan(redis, pairs, meant, count, parse_cursor(cursor), tally=True)
    return page(found, meant, count, "/v1/dead", {"cursor": found.next.encode()} if found.next else None)
