"""Messages for later and schedules over HTTP: `supervisor later` and `supervisor schedule`."""

import re
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from supervisor.broker import later_set as later
from supervisor.broker import schedules
from supervisor.core.later import check_delay
from supervisor.core.schedule import schedules_of
from supervisor.errors import UsageError
from supervisor.fastapi import RedisDep
from supervisor.text import did_you_mean

from .access import audited
from .later_replies import LaterList, LaterMessage, Run, ScheduleList
from .overview_routes import redis_status_of
from .problems import Problem, unknown_when_lost
from .read_route import ReadRoute
from .schemas import COUNT_MAX, Name, Stream, answers, json_response, problems
from .service import ServiceDep

router = APIRouter(prefix="/v1", tags=["later"], route_class=ReadRoute)
_CHANGE = ("not-found", "invalid", "wrong-type", "redis-unavailable", "redis-refused", "outcome-unknown")
_ONCE = "it may be done. Repeat the request: it can be done only once, and 404 says that it is done"
#: A plus sign in a query is a blank.
_LOST_PLUS = re.compile(r" (?=\d\d:?\d\d$)")


def parse_time(request: Request) -> tuple[float | None, datetime | None]:
    """Return the query's `after_s` and `at`. Raises Problem."""
    after_s, at = request.query_params.get("after_s"), request.query_params.get("at")
    if after_s is not None and at is not None:
        raise _wrong("at", "give either after_s or at, not both")
    if after_s is not None:
        try:
            return check_delay(float(after_s)), None
        except (ValueError, UsageError):
            raise _wrong("after_s", f"{after_s!r} is not a number of seconds from 0 on") from None
    if at is not None:
        try:
            moment = datetime.fromisoformat(_LOST_PLUS.sub("+", at))
            moment.timestamp()
        except (ValueError, OverflowError):
            raise _wrong("at", f"{at!r} is not a time such as 2030-01-31T08:00:00Z") from None
        if moment.tzinfo is None:
            raise _wrong("at", f"{at!r} has no timezone: 2030-01-31T08:00:00Z or 2030-01-31T08:00:00%2B01:00")
        return None, moment
    return None, None


def _wrong(parameter: str, text: str) -> Problem:
    return Problem("invalid", text, errors=[{"parameter": parameter, "detail": text}])


@router.get(
    "/later",
    summary="What is to be published later",
    responses=answers(LaterList, "invalid", "wrong-type", "redis-unavailable"),
)
async def list_later(
    service: ServiceDep,
    redis: RedisDep,
    stream: Annotated[Name | None, Query(description="Only of this stream")] = None,
    count: Annotated[int, Query(ge=1, le=COUNT_MAX, description="How many of each stream, the first due first")] = 100,
) -> Response:
    """`streams` says how many wait in each. A malformed member has an `error` and no `fields`.

    It counts as waiting until it is due, and as malformed from then on: then it is logged, and its `due` is null.
    """
    if stream is not None:
        names = [stream]
    else:
        handled = {name for name, _ in (await redis_status_of(service)).pairs}
        names = sorted({*handled, *await later.noted_streams(redis)})
    totals = await later.counts(redis, names)
    messages = [one.as_dict() for total in totals async for one in later.listed(redis, total.stream, count)]
    return json_response({"messages": messages, "streams": [total._asdict() for total in totals]})


@router.get(
    "/streams/{stream:name}/later/{later_id:id}",
    summary="One message for later",
    responses=answers(LaterMessage, "not-found", "invalid", "wrong-type", "redis-unavailable"),
)
async def read_later(stream: Stream, later_id: str, redis: RedisDep) -> Response:
    """404: it was published or cancelled, or never existed."""
    return json_response((await _find(redis, stream, later_id)).as_dict())


@router.delete(
    "/streams/{stream:name}/later/{later_id:id}",
    status_code=204,
    summary="Cancel a message for later",
    responses=problems(*_CHANGE),
)
async def cancel_later(request: Request, stream: Stream, later_id: str, redis: RedisDep) -> Response:
    """404: it was published or cancelled, or never existed."""
    waiting = await _find(redis, stream, later_id)
    with audited(request, "later:cancel", stream=stream, id=later_id), unknown_when_lost(_ONCE):
        if not await later.cancel(redis, waiting):
            raise _gone(stream, later_id)
    return Response(status_code=204)


@router.post(
    "/streams/{stream:name}/later/{later_id:id}:run",
    status_code=202,
    summary="Publish a message for later now",
    responses=answers(Run, *_CHANGE, status=202),
)
async def run_later(request: Request, stream: Stream, later_id: str, redis: RedisDep) -> Response:
    """404: it was published or cancelled, is malformed, or never existed."""
    waiting = await _find(redis, stream, later_id)
    with audited(request, "later:run", stream=stream, id=later_id), unknown_when_lost(_ONCE):
        entry = await later.run_now(redis, waiting)
        if entry is None:
            raise _gone(stream, later_id)
    return json_response({"id": entry, "stream": stream}, 202)


async def _find(redis: RedisDep, stream: str, later_id: str) -> later.Waiting:
    waiting = await later.find(redis, stream, later_id)
    if waiting is None:
        raise _gone(stream, later_id)
    return waiting


def _gone(stream: str, later_id: str) -> Problem:
    return Problem("not-found", f"nothing with the id {later_id!r} waits for stream {stream!r}")


@router.get(
    "/schedules",
    summary="The schedules of config.toml",
    responses=answers(ScheduleList, "invalid", "redis-unavailable"),
)
async def list_schedules(service: ServiceDep, redis: RedisDep) -> Response:
    """When each came last, and when it comes next."""
    return json_response({"schedules": await schedules.overview(redis, schedules_of(service.settings))})


@router.post(
    "/schedules/{name}:run",
    status_code=202,
    summary="Publish the message of a schedule now",
    responses=answers(Run, *_CHANGE, status=202),
)
async def run_schedule(request: Request, name: str, service: ServiceDep, redis: RedisDep) -> Response:
    """Its ticks stay as they are. A paused schedule stays paused."""
    configured = {one.name: one for one in schedules_of(service.settings)}
    if name not in configured:
        raise Problem("not-found", f"config.toml has no schedule {name!r}{did_you_mean(name, configured)}")
    stream = configured[name].stream
    await redis.ping()  # while Redis can't be reached, it is certain that nothing is published
    advice = "the message may be published. Look at the stream before you repeat the request"
    with audited(request, "schedule:run", schedule=name, stream=stream) as fields, unknown_when_lost(advice):
        fields["id"] = entry = await schedules.run_now(redis, configured[name])
    return json_response({"id": entry, "stream": stream}, 202)
