"""Checks every request before its route: the Host header, the token, the origin and the size of the body.

It also gives each request an id. It is a plain ASGI middleware: Starlette's base class costs more time than the
rest of a request.
"""

import asyncio
import functools
import ipaddress
import re
import secrets
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from supervisor.log import Limiter
from supervisor.settings.model import Settings

from .access import READER, Access
from .bounded_body import bounded, check_length
from .dashboard_page import PATHS as DASHBOARD
from .http_figures import HttpFigures
from .problems import KINDS, Problem, response
from .root_path import path_below, with_root_path
from .stream_paths import is_utf8, with_single_segments

PROBLEM_PAGES = "/problems/"
PROBES = frozenset({"/livez", "/readyz", "/startupz"})
#: A request with a wrong token is answered after this time.
WRONG_TOKEN_S = 0.5
_WRONG_TOKEN = "unauthorized"
_LOOKING = frozenset({"GET", "HEAD"})
_SAFE_METHODS = _LOOKING | {"OPTIONS"}
#: The same for everybody. Everything else is data, of which nothing may keep a copy unless its route says so.
_CACHEABLE = frozenset({"/docs", "/openapi.json"})
_CACHEABLE_BELOW = ("/docs/", PROBLEM_PAGES)
#: What a browser sends for a request that the user or a page of this service made.
_OWN_SITE = frozenset({b"same-origin", b"none"})
_HOST = re.compile(r"(\[[^\[\]]+\]|[^:\[\]]+)(?::\d*)?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestGuard:
    """Refuse requests that must not reach a route, and mark every answer."""

    def __init__(self, app: ASGIApp, settings: Settings, figures: HttpFigures, log: Any) -> None:
        """`settings` stay the same for the life of the process; only tokens may be read again from their files."""
        self._app = app
        self._log = log
        self._figures = figures
        self._limiter = Limiter()
        self._root_path = settings.api.root_path
        self._max_body_bytes = settings.api.max_body_bytes
        self._access = Access(settings, log)
        #: No token is needed, since only this machine can connect. Then the Host header must name this machine.
        self._only_local = not self._access.needs_token and _is_loopback(settings.api.bind.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        scope = with_root_path(scope, headers, self._root_path)
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()
        scope["request_id"] = request_id.decode()
        refusal = self._refusal(scope, headers)
        if refusal is not None and refusal.kind == _WRONG_TOKEN and b"authorization" in headers:
            await self._slow_down(scope)
        if scope["type"] == "websocket":
            await _websocket(self._app, refusal, scope, receive, send)
            return

        routed = scope if refusal is not None else _routed(scope)

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._figures.answered(routed, message["status"])
                _mark(message.setdefault("headers", []), scope)
            await send(message)

        if refusal is not None:
            await response(scope, refusal)(scope, receive, marked)
        else:
            await self._app(routed, bounded(receive, headers, self._max_body_bytes), marked)

    async def _slow_down(self, scope: Scope) -> None:
        """Let a wrong token cost time, so that tokens can't be guessed."""
        repeated = self._limiter.held_back(_WRONG_TOKEN)
        if repeated is not None:
            client = (scope.get("client") or ("",))[0]
            self._log.warning("request refused", kind=_WRONG_TOKEN, client=client, repeated=repeated or None)
        await asyncio.sleep(WRONG_TOKEN_S)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Problem | None:
        if (wrong := self._wrong_address(scope, headers.get(b"host"))) is not None:
            return wrong
        # A WebSocket has no method. Browsers let pages of any origin open one, so it is never safe.
        method = scope.get("method", "")
        if not (method in _LOOKING and _is_open(path_below(scope))):
            role_now = functools.partial(self._access.role, headers.get(b"authorization", b""))
            scope["role"] = role = role_now()
            scope["role_now"] = role_now  # for answers that go on after the token was changed
            if role is None:
                return Problem(_WRONG_TOKEN, headers={"WWW-Authenticate": "Bearer"})
            wrong = Problem("forbidden") if role == READER and method not in _SAFE_METHODS else None
        if wrong is not None or method in _SAFE_METHODS:
            return wrong or check_length(headers, self._max_body_bytes)
        site = headers.get(b"sec-fetch-site")
        if site is not None and site not in _OWN_SITE:
            return Problem("cross-site", f"Sec-Fetch-Site: {site.decode(errors='replace')}")
        return check_length(headers, self._max_body_bytes)

    def _wrong_address(self, scope: Scope, host: bytes | None) -> Problem | None:
        if not is_utf8(scope):
            return Problem("bad-request", "the address is not UTF-8 with percent-encoding")
        if self._only_local and host is not None and not _is_loopback(host):
            return _wrong_host(host)
        return None


def _mark(headers: list[tuple[bytes, bytes]], scope: Scope) -> None:
    """Add what every answer has."""
    headers.append((b"x-content-type-options", b"nosniff"))
    names = {name.lower() for name, _ in headers}
    if b"x-request-id" not in names:
        headers.append((b"x-request-id", scope["request_id"].encode()))
    if b"cache-control" not in names and not _is_cacheable(path_below(scope)):
        headers.append((b"cache-control", b"no-store"))


def _is_cacheable(path: str) -> bool:
    return path in _CACHEABLE or path.startswith(_CACHEABLE_BELOW)


def _routed(scope: Scope) -> Scope:
    """Return the scope with the path that the routes match."""
    path = with_single_segments(scope.get("raw_path", b""), scope.get("root_path", ""), scope["path"])
    return scope if path == scope["path"] else {**scope, "path": path}


async def _websocket(app: ASGIApp, refusal: Problem | None, scope: Scope, receive: Receive, send: Send) -> None:
    """Hand a WebSocket to the app. One that is refused before it is accepted is answered with a problem and 403."""
    accepted = refused = False

    async def explained(message: Message) -> None:
        nonlocal accepted, refused
        if message["type"] == "websocket.close" and not accepted:
            refused = True
            await response(scope, Problem("websocket-refused"))(scope, receive, send)
            return
        accepted = True
        await send(message)

    if refusal is None:
        await app(scope, receive, explained)
    else:
        await receive()
        refused = True
        refusal.status_code = HTTPStatus.FORBIDDEN
        await response(scope, refusal)(scope, receive, send)
    if refused:
        # uvicorn would log an error for each one, since it takes only an accepted WebSocket for complete.
        raise ClientDisconnected


def _is_open(path: str) -> bool:
    """Return whether a GET of this path needs no token: the probes, the dashboard's files, a page about a problem."""
    if path in PROBES or path in DASHBOARD:
        return True
    return path.startswith(PROBLEM_PAGES) and path.removeprefix(PROBLEM_PAGES) in KINDS


@functools.lru_cache(maxsize=64)
def _is_loopback(host: bytes) -> bool:
    """Return whether a Host header, with or without a port, can only mean the machine that sent it."""
    match = _HOST.fullmatch(host.decode("latin-1").strip().lower())
    if match is None:
        return False
    name = match[1].strip("[]").removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _wrong_host(host: bytes) -> Problem:
    """Return the answer to DNS rebinding: a page whose own name was made to point to this machine."""
    return Problem(
        "cross-site",
        f"Host: {host.decode(errors='replace')} does not name this machine, and there is no token;"
        " ask for localhost, or set [api] token",
    )
