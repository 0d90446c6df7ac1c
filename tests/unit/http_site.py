"""A server with the service's protocol and a small app, over real sockets."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from api import connections
from api.connections import LIMITS
from api.http_figures import HttpFigures
from api.http_protocol import protocol

GET = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s"
CHUNKED = b"POST /p HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
LIMIT_S = 20


class Log:
    """Keeps the events that are logged."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))


class Site:
    """A server whose app answers with the method and the length of the body, once `go` is set."""

    def __init__(self) -> None:
        self.log = Log()
        self.figures = HttpFigures()
        self.state = ServerState()
        self.go = asyncio.Event()
        self.go.set()
        self.requests = 0
        self.running = 0
        self.answer = b""
        self.port = 0
        self.clients: list[asyncio.StreamWriter] = []

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        self.running += 1
        try:
            await self.go.wait()
            if scope["path"] == "/early":
                await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
                return
            size, more = 0, True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                size, more = size + len(message.get("body", b"")), message["more_body"]
            text = self.answer or f"{scope['method']} {scope['path']} {size}\n".encode()
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]}
            )
            await send({"type": "http.response.body", "body": text})
        finally:
            self.running -= 1

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        streams = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(streams[1])
        return streams

    async def ask(self, data: bytes) -> bytes:
        """Send the bytes and return all that comes back until the server ends the connection."""
        reader, writer = await self.open()
        writer.write(data)
        answer = await asyncio.wait_for(rest_of(reader), LIMIT_S)
        writer.close()
        return answer


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    found = b""
    try:
        while piece := await reader.read(65536):
            found += piece
    except ConnectionError:
        pass
    return found


@asynccontextmanager
async def _site() -> AsyncIterator[Site]:
    site = Site()
    http: Any = protocol(site.log, site.figures)
    config = uvicorn.Config(site.app, interface="asgi3", http=http, log_config=None)  # type: ignore[arg-type]
    config.load()
    make: Any = config.http_protocol_class
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: make(config=config, server_state=site.state, app_state={}, _loop=loop), "127.0.0.1", 0
    )
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
        for connection in list(site.state.connections):
            connection.transport.abort()  # type: ignore[union-attr]
        for client in site.clients:  # one with unsent bytes would stay open
            client.transport.abort()


def site_runner(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what runs a test against a site with these limits, and with its times looked at often."""

    def run(test: Callable[[Site], Awaitable[None]], **limits: Any) -> None:
        changed = dataclasses.replace(connections.ConnectionLimits(), idle_s=0.3, linger_s=0.3)
        for name, value in {**dataclasses.asdict(changed), **limits}.items():
            monkeypatch.setattr(LIMITS, name, value)

        async def whole() -> None:
            async with _site() as site:
                await asyncio.wait_for(test(site), LIMIT_S * 2)

        asyncio.run(whole())

    monkeypatch.setattr("api.connections.TICK_S", 0.02)
    monkeypatch.setattr("api.http_protocol.TICK_S", 0.02)
    return run


def kinds(site: Site) -> list[str]:
    return [fields.get("kind", event) for event, fields in site.log.events]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)
