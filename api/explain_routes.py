"""What became of one message in each group: `supervisor explain` over HTTP."""

from fastapi import APIRouter
from fastapi.responses import Response

from supervisor.broker.entry_lookup import collect
from supervisor.core.entry_fate import Presence
from supervisor.core.entry_fate import explain as judge
from supervisor.fastapi import RedisDep

from .overview_routes import handled_groups
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

    `before` is the number of entries that come first. `idle_ms` is the time since the last delivery to `consumer`. 404:
    Redis has no trace of the message, so it was not published, or was trimmed or deleted.
    """
    own = [group["group"] for group in await handled_groups(service) if group["stream"] == stream]
    found = judge(*await collect(redis, stream, entry_id, own, letters_max=LETTERS_MAX))
    if not found.known:
        why = "trimmed, deleted, or never published" if found.presence is Presence.GONE else found.presence.value
        raise Problem("not-found", f"stream {stream!r} has no trace of {entry_id}: {why}")
    return json_response(found.as_dict())
