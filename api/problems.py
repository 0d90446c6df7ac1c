"""Answers every error with an RFC 9457 problem document: the service's own, the framework's, Redis's and bugs.

One table lists the kinds of problems. Each has a page at the address that `type` names.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Scope

from supervisor.broker.publish_pipeline import FULL
from supervisor.broker.redis_errors import CONNECTION_LOST, UNREACHABLE, code_of
from supervisor.errors import (
    IdempotencyError,
    NotConfirmedError,
    PublishError,
    PublishRefusedError,
    PublishUnknownError,
    UsageError,
)
from supervisor.text import fault_text

MEDIA_TYPE = "application/problem+json"
#: A range, so that clients that were refused together do not all come back at once.
RETRY_AFTER_S = range(1, 4)
#: A Host header that may stand in an address.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
#: RFC 9457, 4.2.1: the status says all there is to say.
BLANK = "about:blank"


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One kind of problem."""

    status: int
    title: str
    #: For the page: what happened and what to do.
    text: str


KINDS = {
    "bad-request": ProblemKind(400, "Bad request", "`detail` says what is wrong with the request."),
    "malformed-json": ProblemKind(
        400,
        "The body is not JSON",
        "Send valid JSON in UTF-8, in which no object has two members of one name; `detail` says what is wrong.",
    ),
    "unauthorized": ProblemKind(
        401, "A token is needed", "Send `Authorization: Bearer <token>` with the token in [api] token."
    ),
    "forbidden": ProblemKind(
        403, "The token is read-only", "This changes something; use the operator's token, [api] token."
    ),
    "cross-site": ProblemKind(403, "Refused from another site", "A browser sent this for a page of another origin."),
    "websocket-refused": ProblemKind(
        403, "The WebSocket was refused", "No route takes a WebSocket at this address, or the route has refused it."
    ),
    "stream-not-allowed": ProblemKind(
        403, "The stream may not be written to", "[api] streams lists the streams that clients may publish to."
    ),
    "not-found": ProblemKind(404, "Not found", "Nothing exists at this address, or it was removed."),
    "method-not-allowed": ProblemKind(405, "Method not allowed", "The header Allow lists the methods of this address."),
    "ambiguous": ProblemKind(
        409, "More than one dead letter", "Several groups have a dead letter with this id; name one with `group`."
    ),
    "wrong-type": ProblemKind(409, "The key is not a stream", "Redis holds another type of value under this name."),
    "too-slow": ProblemKind(
        408, "The request came too slowly", "Send the head at once, and the body without long breaks."
    ),
    "pool-refused": ProblemKind(
        409, "The pool refuses that now", "`detail` says why, for example that the pool is draining."
    ),
    "body-too-large": ProblemKind(413, "The body is too large", "Send less at once, or raise [api] max_body_bytes."),
    "media-type": ProblemKind(415, "Unsupported media type", "Set Content-Type to one of those that `detail` names."),
    "invalid": ProblemKind(
        422, "The request is not valid", "`errors` lists what is wrong, by JSON pointer or parameter."
    ),
    "idempotency-key-reused": ProblemKind(
        422, "The Idempotency-Key was used for another message", "A key is kept for 24 hours; use a new one."
    ),
    "no-models": ProblemKind(
        501,
        "Messages can't be validated here",
        "The service can't import the handlers, whose models say what is valid; `detail` says why. Nothing was stored.",
    ),
    "head-too-large": ProblemKind(
        431, "The head of the request is too large", "Send fewer or shorter headers; `detail` says what is allowed."
    ),
    "internal": ProblemKind(500, "Internal error", "This is a bug: the log has a traceback with the same request id."),
    "backlog": ProblemKind(
        429, "The backlog is too long", "The stream's handlers are behind by more than [api] max_lag. Try again later."
    ),
    "memory": ProblemKind(
        503,
        "Redis is short of memory",
        "Redis uses more of its memory than [api] max_memory_percent. Nothing was stored; try again later.",
    ),
    "redis-unavailable": ProblemKind(
        503,
        "Redis is unreachable",
        "Try again after the time in Retry-After. The service's own routes have stored nothing.",
    ),
    "redis-refused": ProblemKind(
        503,
        "Redis refuses the command for now",
        "Redis is out of memory, loading, read-only or the like. Nothing was stored; try again later.",
    ),
    "outcome-unknown": ProblemKind(
        503,
        "The answer was lost",
        "Redis or the pool may have done what was asked for. Repeat a publish only with the same Idempotency-Key; dead"
        " letters may be replayed or removed again. `detail` says what to do after other changes.",
    ),
    "not-confirmed": ProblemKind(
        503,
        "Stored, but not confirmed",
        "The message is stored, but not as many replicas have it as were asked for, or it is not yet on disk. Repeat it"
        " only with the same Idempotency-Key.",
    ),
    "busy": ProblemKind(
        503,
        "Too many requests",
        "Too many requests wait for Redis, too many clients follow streams, or there are too many connections.",
    ),
    "no-pool": ProblemKind(
        503, "No pool answers on this host", "Ask the HTTP service of a host that runs `supervisor start`."
    ),
}
_LATER = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
#: The errors of Redis for `(0-0` as an end and for `(` with the highest id as a start.
_NO_INTERVAL = ("invalid start ID", "invalid end ID")
#: What the framework says of JSON that can't be read for another reason than its syntax.
_NOT_PARSED = "There was an error parsing the body"
#: The framework's own errors.
_OF_STATUS = {
    400: "bad-request",
    401: "unauthorized",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
    415: "media-type",
    422: "invalid",
}


class Problem(HTTPException):
    """Raise it to answer with a problem of this kind."""

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
        self.title, self.text = KINDS[kind].title, KINDS[kind].text
        self.errors = list(errors)
        #: For programs: the kind, or the error code of Redis.
        self.code = code or kind
        status = KINDS[kind].status
        more = {"Retry-After": str(secrets.choice(RETRY_AFTER_S))} if status in _LATER else {}
        super().__init__(status, detail, headers={**more, **(headers or {})})


def of_status(error: HTTPException) -> Problem:
    """Return the problem for an HTTPException; a status that has no kind keeps its standard title."""
    if error.detail == _NOT_PARSED and isinstance(cause := error.__cause__, ValueError | RecursionError):
        return Problem("malformed-json", fault_text(cause))
    detail = error.detail if isinstance(error.detail, str) else orjson.dumps(error.detail).decode()
    problem = Problem(_OF_STATUS.get(error.status_code, "internal"), detail, headers=error.headers)
    if error.status_code not in _OF_STATUS:
        problem.status_code, problem.kind = error.status_code, BLANK
        standard = [status for status in HTTPStatus if status == error.status_code]
        problem.title = problem.text = standard[0].phrase if standard else "Error"
        problem.code = problem.title.lower().replace(" ", "-")
    elif detail in ("Not Found", "Method Not Allowed"):  # the framework's, which say less than the texts here
        problem.detail = ""
    return problem


def response(scope: Scope, problem: Problem) -> Response:
    """Return the problem as an answer to the request of `scope`."""
    headers = {"Cache-Control": "no-store", **(problem.headers or {})}
    headers["X-Request-Id"] = scope.get("request_id", "")
    return Response(document(scope, problem), problem.status_code, headers, MEDIA_TYPE)


def document(scope: Scope, problem: Problem) -> bytes:
    """Return the problem as JSON for the client of `scope`, and count it."""
    if (app := scope.get("app")) is not None:
        app.state.http.refused(problem.kind)
    body: dict[str, Any] = {
        "type": BLANK if problem.kind == BLANK else f"{base_url(scope)}/problems/{problem.kind}",
        "title": problem.title,
        "status": problem.status_code,
        "detail": problem.detail or problem.text,
        "instance": scope.get("raw_path", b"").decode("ascii", "replace") or scope["path"],
        "code": problem.code,
        "request_id": scope.get("request_id", ""),
    }
    if problem.errors:
        body["errors"] = problem.errors
    return _json(body)


def base_url(scope: Scope) -> str:
    """Return the address of the service as the client sees it, without a slash at the end."""
    host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    if not _HOST.fullmatch(host):
        name, port = scope.get("server") or ("localhost", None)
        name = f"[{name}]" if ":" in name else name
        host = f"{name}:{port}" if port else "localhost"  # a Unix socket has no port
    scheme = scope["scheme"].replace("ws", "http")
    return f"{scheme}://{host}{quote(scope.get('root_path', '').rstrip('/'))}"


def of_code(code: str, detail: str) -> Problem:
    """Return the problem for an error code of Redis."""
    if code == UNREACHABLE:
        return Problem("redis-unavailable", detail, code=code)
    if code == FULL:
        return Problem("busy", detail, code=code)
    if code == "WRONGTYPE":
        return Problem("wrong-type", detail, code=code)
    if detail.startswith(_NO_INTERVAL):
        return Problem("invalid", "no id comes before the first possible one or after the last possible one")
    return Problem("redis-refused", detail, code=code)


@contextmanager
def unknown_when_lost(advice: str) -> Iterator[None]:
    """Raise the Problem `outcome-unknown` when the connection is lost: Redis may have carried out the change."""
    try:
        yield
    except CONNECTION_LOST as error:
        if code_of(error) != UNREACHABLE:  # a refusal, for which redis-py has a subclass of ConnectionError
            raise
        reason = str(error) or "no answer in time"
        raise Problem("outcome-unknown", f"{reason}; {advice}", code=UNREACHABLE) from None


def of_error(error: Exception) -> Problem:
    """Return the problem for any exception."""
    answer = next((answer for kind, answer in _ANSWERS if isinstance(error, kind)), None)
    return answer(error) if answer else Problem("internal")


def pointer_of(*parts: object) -> str:
    """Return a JSON pointer as a URI fragment (RFC 9457)."""
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
    """Return the methods of the address. The framework lists those of one route, but GET and POST are two routes."""

    def taken(method: str) -> bool:
        # HEAD is answered as GET is.
        scope = {**request.scope, "method": "GET" if method == "HEAD" else method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in _METHODS if taken(method)]


def _of_publish(error: PublishError) -> Problem:
    if isinstance(error, IdempotencyError):
        return Problem("idempotency-key-reused", str(error))
    if isinstance(error, NotConfirmedError):
        return Problem("not-confirmed", str(error), code=error.code)
    if isinstance(error, PublishUnknownError):
        return Problem("outcome-unknown", str(error), code=error.code)
    assert isinstance(error, PublishRefusedError)
    return of_code(error.code, str(error))


def _of_validation(error: RequestValidationError) -> Problem:
    errors: list[dict[str, str]] = []
    for item in error.errors():
        where, *path = item["loc"]
        if item["type"] == "json_invalid":
            return Problem("malformed-json", f"{item['msg']}: {item.get('ctx', {}).get('error', '')}".rstrip(": "))
        place = {"pointer": pointer_of(*path)} if where == "body" else {"parameter": ".".join(map(str, path))}
        errors.append({**place, "detail": item["msg"]})
    return Problem("invalid", "; ".join(entry["detail"] for entry in errors), errors=errors)


def _of_usage(error: UsageError) -> Problem:
    field = getattr(error, "field", None)
    return Problem(
        "invalid", str(error), errors=[{"pointer": pointer_of(field), "detail": str(error)}] if field else []
    )


#: Exceptions that have an answer of their own, subclasses before their bases. All others are logged.
_ANSWERS: tuple[tuple[type[Exception], Callable[[Any], Problem]], ...] = (
    (Problem, lambda problem: problem),
    (HTTPException, of_status),
    (RequestValidationError, _of_validation),
    (PublishError, _of_publish),
    (UsageError, _of_usage),
    (ClientDisconnect, lambda _: Problem("bad-request", "the client disconnected before it had sent the whole body")),
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
