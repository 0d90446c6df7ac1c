"""What became of one message in each group: `supervisor explain` over HTTP."""

from fastapi import APIRouter
from fastapi.responses import Response

from supervisor.broker.entry_lookup import collect, collect_later
from supervisor.core.entry_fate import Presence
from supervisor.core.entry_fate import explain as judge
from supervisor.fastapi import RedisDep

from .overview_routes import redis_status_of
from .problems import Problem
from .read_route import ReadRoute
from .replies import Explanation
from .schemas import EntryId, Stream, answers, json_response
from .service import ServiceDep

router = APIRouter(prefix="/v1/streams", tags=["status"], route_class=ReadRoute)
#: As many dead letters as fit into the time of an answer; `letters_left` counts the rest.
LETTERS_MAX = 500


@router.get(
    "/{stream:name}/messages/{entry_id}/explain",
    summary="What became of a message",
    responses=answers(Explanation, "not-found", "invalid", "wrong-type", "redis-unavailable"),
)
async def explain_message(stream: Stream, entry_id: EntryId, service: ServiceDep, redis: RedisDep) -> Response:
    """For each group: not delivered yet, pending with which consumer, done, or a dead letter and why.

    `origin` is what published the message, if that is known: a message for later, a schedule, `Emit` or the outbox.
    `emitted` is what the group's handler has published by `Emit`.
    `before` is the number of entries that come first. `idle_ms` is the time since the last delivery to `consumer`. 404:
    Redis has no trace of the message, so it was not published, or was trimmed or deleted.
    """
    own = [group for handled, group in (await redis_status_of(service)).pairs if handled == stream]
    verdict = judge(*await collect(redis, stream, entry_id, own, letters_max=LETTERS_MAX))
    if not verdict.known:
        why = "trimmed, deleted, or never published" if verdict.presence is Presence.GONE else verdict.presence.value
        raise Problem("not-found", f"stream {stream!r} has no trace of {entry_id}: {why}")
    return json_response(verdict.as_dict())


@router.get(
    "/{stream:name}/later/{later_id:id}/explain",
    summary="What became of a message for later",
    responses=answers(Explanation, "not-found", "invalid", "wrong-type", "redis-unavailable"),
)
async def explain_later(stream: Stream, later_id: str, service: ServiceDep, redis: RedisDep) -> Response:
    """It waits until `later.due_ms`, was cancelled, or has entered its stream: then `id` and all else is of the entry.

    404: no message for later has this id, and none that was published or cancelled lately.
    """
    own = [group for handled, group in (await redis_status_of(service)).pairs if handled == stream]
    verdict = judge(*await collect_later(redis, stream, later_id, own, letters_max=LETTERS_MAX))
    if not verdict.known:
        raise Problem("not-found", f"stream {stream!r} has no message for later {later_id!r}, and had none lately")
    return json_response(verdict.as_dict())
