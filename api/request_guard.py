"""What every request passes first: its id, the name it asked for, the token, the origin, the size of its body.

A plain ASGI middleware, since Starlette's own class costs more than the rest of a request.
"""

from __future__ import annotations

import functools
import hmac
import ipaddress
import re
import secrets
from typing import TYPE_CHECKING

from .problems import Problem, response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from supervisor.settings.model import ApiSettings

PROBES = frozenset({"/livez", "/readyz", "/startupz"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
#: What a browser says of a request that the user or our own pages made.
_OWN_SITE = frozenset({b"same-origin", b"none"})
_HOST = re.compile(r"(\[[^\[\]]+\]|[^:\[\]]+)(?::\d*)?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestGuard:
    """Refuses what must not come in, and marks what comes out."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        """`settings` may change only with the process."""
        self._app = app
        self._max_body_bytes = settings.max_body_bytes
        self._token = settings.token.encode()
        #: Nobody needs to prove anything, since only this machine can connect: then a request must be meant for it.
        self._only_here = not settings.token and _is_here(settings.bind.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8).encode()
        scope["request_id"] = request_id.decode()

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = message.setdefault("headers", [])
                found.append((b"x-content-type-options", b"nosniff"))
                if not any(name.lower() == b"x-request-id" for name, _ in found):
                    found.append((b"x-request-id", request_id))
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await response(scope, refusal)(scope, receive, marked)
        elif scope["method"] in _SAFE_METHODS:
            await self._app(scope, receive, marked)
        else:
            await self._app(scope, self._counted(receive), marked)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Problem | None:
        host = headers.get(b"host")
        if self._only_here and host is not None and not _is_here(host):
            return _not_here(host)
        path = scope["path"]
        if self._token and path not in PROBES and not path.startswith("/problems/"):
            kind, _, token = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
                return Problem("unauthorized", headers={"WWW-Authenticate": "Bearer"})
        if scope["method"] in _SAFE_METHODS:
            return None
        site = headers.get(b"sec-fetch-site")
        if site is not None and site not in _OWN_SITE:
            return Problem("cross-site", f"Sec-Fetch-Site: {site.decode(errors='replace')}")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_body_bytes:
            return self._too_large()
        return None

    def _counted(self, receive: Receive) -> Receive:
        """Content-Length may be absent: count what comes."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> Problem:
        return Problem("body-too-large", f"at most {self._max_body_bytes} bytes", headers={"Connection": "close"})


@functools.lru_cache(maxsize=64)
def _is_here(host: bytes) -> bool:
    """Whether a Host header, with or without a port, can only mean the machine that sent it."""
    found = _HOST.fullmatch(host.decode("latin-1").strip().lower())
    if found is None:
        return False
    name = found[1].strip("[]").removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _not_here(host: bytes) -> Problem:
    """A page whose own name was made to point to this machine is of the same origin to the browser."""
    return Problem(
        "cross-site",
        f"Host: {host.decode(errors='replace')} does not name this machine, and there is no token;"
        " ask for localhost, or set [api] token",
    )
