"""Errors as RFC 9457 problem documents, everywhere: our own, the framework's, Redis's and bugs.

One table says which kinds there are. Each has a page at its `type`, so that who meets one can read on.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from supervisor.broker.coalescer import FULL
from supervisor.broker.redis_errors import UNREACHABLE, code_of
from supervisor.errors import (
    IdempotencyError,
    PublishError,
    PublishRefusedError,
    PublishUnknownError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fastapi import FastAPI, Request
    from starlette.types import Scope

MEDIA_TYPE = "application/problem+json"
#: Clients that were refused together shall not come back together.
RETRY_AFTER_S = range(1, 4)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem."""

    status: int
    title: str
    #: For the page: what happened and what to do.
    text: str


KINDS = {
    "bad-request": Kind(400, "Bad request", "The request can't be understood; `detail` says why."),
    "malformed-json": Kind(400, "The body is not JSON", "Send valid JSON in UTF-8; `detail` says where it breaks off."),
    "unauthorized": Kind(
        401, "A token is needed", "Send `Authorization: Bearer <token>` with the token in [api] token."
    ),
    "cross-site": Kind(403, "Refused from another site", "A browser sent this for a page of another origin."),
    "not-found": Kind(404, "Not found", "There is nothing at this address, or no longer."),
    "method-not-allowed": Kind(405, "Method not allowed", "The header Allow names the methods of this address."),
    "ambiguous": Kind(409, "More than one is meant", "Several groups have a letter of that id; name one with `group`."),
    "wrong-type": Kind(409, "The key is no stream", "Redis holds another type of value under that name."),
    "body-too-large": Kind(413, "The body is too large", "Send less at once, or raise [api] max_body_bytes."),
    "media-type": Kind(415, "The media type is not taken", "Set Content-Type to one of those that `detail` names."),
    "invalid": Kind(422, "The request is not valid", "`errors` lists what is wrong, by JSON pointer or parameter."),
    "idempotency-key-reused": Kind(
        422, "The Idempotency-Key stands for another message", "A key is kept for 24 hours; take a new one."
    ),
    "internal": Kind(500, "Internal error", "A bug: the service's log has the traceback, under the same request id."),
    "redis-unavailable": Kind(
        503, "Redis can't be reached", "Nothing was stored. Try again after the time in Retry-After."
    ),
    "redis-refused": Kind(
        503,
        "Redis refuses for now",
        "Out of memory, loading, read-only or the like. Nothing was stored; try again later.",
    ),
    "outcome-unknown": Kind(
        503,
        "The answer of Redis was lost",
        "What was asked for may have been done. Repeat a publish only with the Idempotency-Key that it carried; dead"
        " letters may be replayed or removed again as they are.",
    ),
    "busy": Kind(
        503, "Too much waits already", "Too many requests wait for Redis, or too many clients follow streams."
    ),
    "not-ready": Kind(503, "Not ready", "The service can't do its work yet, or for now."),
}
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
#: What Redis says of `(0-0` as an end and of `(` with the highest id as a start.
_NO_INTERVAL = ("invalid start ID", "invalid end ID")
_OF_STATUS = {
    400: "bad-request",
    401: "unauthorized",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
}
_OF_STATUS |= {415: "media-type", 422: "invalid", 500: "internal", 503: "not-ready"}


class Problem(HTTPException):
    """Raise it to answer with a problem of that kind."""

    def __init__(
        self,
        kind: str,
        detail: str = "",
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        code: str = "",
    ) -> None:
        self.kind = kind
        self.errors = list(errors)
        #: For programs: the kind, or Redis's own word.
        self.code = code or kind
        status = KINDS[kind].status
        more = {"Retry-After": str(secrets.choice(RETRY_AFTER_S))} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
        super().__init__(status, detail, headers={**more, **(headers or {})})


def response(scope: Scope, problem: Problem) -> Response:
    """The problem as an answer to the request of `scope`."""
    kind = KINDS[problem.kind]
    body: dict[str, Any] = {
        "type": f"/problems/{problem.kind}",
        "title": kind.title,
        "status": problem.status_code,
        "detail": problem.detail or kind.text,
        "instance": scope["path"],
        "code": problem.code,
        "request_id": scope.get("request_id", ""),
    }
    if problem.errors:
        body["errors"] = problem.errors
    headers = dict(problem.headers or {})
    headers["X-Request-Id"] = body["request_id"]
    return Response(_json(body), problem.status_code, headers, MEDIA_TYPE)


def of_code(code: str, detail: str) -> Problem:
    """What a word of Redis means for the client."""
    if code == UNREACHABLE:
        return Problem("redis-unavailable", detail, code=code)
    if code == FULL:
        return Problem("busy", detail, code=code)
    if code == "WRONGTYPE":
        return Problem("wrong-type", detail, code=code)
    if detail.startswith(_NO_INTERVAL):
        return Problem("invalid", "nothing lies before the first or behind the last id that there can be")
    return Problem("redis-refused", detail, code=code)


def of_error(error: Exception) -> Problem:
    """The problem that stands for any exception."""
    answer = next((answer for kind, answer in _ANSWERS if isinstance(error, kind)), None)
    return answer(error) if answer else Problem("internal")


def pointer_of(*parts: object) -> str:
    """A JSON pointer as a URI fragment, as RFC 9457 shows it."""
    return "#" + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def install(app: FastAPI) -> None:
    """Answer all exceptions of the app with problems."""

    async def answer(request: Request, error: Exception) -> Response:
        problem = of_error(error)
        if problem.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            problem.headers = {**(problem.headers or {}), "Allow": ", ".join(_methods(request))}
        return response(request.scope, problem)

    for kind in (*(kind for kind, _ in _ANSWERS), Exception):
        app.add_exception_handler(kind, answer)


def _methods(request: Request) -> list[str]:
    """Those of the address: the router's own header names those of the first route only, and GET and POST are two."""

    def taken(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if taken(method)]


def _of_http(error: HTTPException) -> Problem:
    kind = _OF_STATUS.get(
        error.status_code, "bad-request" if error.status_code < HTTPStatus.INTERNAL_SERVER_ERROR else "internal"
    )
    detail = "" if error.detail in ("Not Found", "Method Not Allowed") else str(error.detail)
    return Problem(kind, detail, headers=error.headers)


def _of_publish(error: PublishError) -> Problem:
    if isinstance(error, IdempotencyError):
        return Problem("idempotency-key-reused", str(error))
    if isinstance(error, PublishUnknownError):
        return Problem("outcome-unknown", str(error), code=error.code)
    assert isinstance(error, PublishRefusedError)
    return of_code(error.code, str(error))


def _of_validation(error: RequestValidationError) -> Problem:
    found: list[dict[str, str]] = []
    for item in error.errors():
        where, *path = item["loc"]
        if item["type"] == "json_invalid":
            return Problem("malformed-json", f"{item['msg']}: {item.get('ctx', {}).get('error', '')}".rstrip(": "))
        place = {"pointer": pointer_of(*path)} if where == "body" else {"parameter": ".".join(map(str, path))}
        found.append({**place, "detail": item["msg"]})
    return Problem("invalid", "; ".join(entry["detail"] for entry in found), errors=found)


def _of_usage(error: UsageError) -> Problem:
    field = getattr(error, "field", None)
    return Problem(
        "invalid", str(error), errors=[{"pointer": pointer_of(field), "detail": str(error)}] if field else []
    )


#: The exceptions that are no bugs, the special ones first. All others are logged.
_ANSWERS: tuple[tuple[type[Exception], Callable[[Any], Problem]], ...] = (
    (Problem, lambda problem: problem),
    (HTTPException, _of_http),
    (RequestValidationError, _of_validation),
    (PublishError, _of_publish),
    (UsageError, _of_usage),
    (ClientDisconnect, lambda _: Problem("bad-request", "the client left before it had sent all")),
    (RedisError, lambda error: of_code(code_of(error), str(error) or "no answer in time")),
    (TimeoutError, lambda error: of_code(code_of(error), str(error) or "no answer in time")),
)


def _json(body: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # a lone surrogate in what the client sent
        return orjson.dumps(
            {k: v.encode(errors="replace").decode() if isinstance(v, str) else v for k, v in body.items()}
        )
