"""The limits of a client's connection, over real sockets, with the times cut short."""

import asyncio
import dataclasses
import resource
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
        answer = await asyncio.wait_for(_rest(reader), LIMIT_S)
        writer.close()
        return answer


async def _rest(reader: asyncio.StreamReader) -> bytes:
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


@pytest.fixture
def on_site(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a test against a site with these limits."""

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


TOO_MUCH = [
    (b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000 + b"\r\n\r\n", 431, "head-too-large"),
    (b"GET / HTTP/1.1\r\nx: " + b"x" * 3_000_000, 431, "head-too-large"),
    (b"GET /" + b"x" * 3_000_000, 431, "head-too-large"),
    (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 101 + b"\r\n", 431, "head-too-large"),
    (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 500_000, 431, "head-too-large"),
    (b"\r\n" * 500_000, 431, "head-too-large"),
    (b"\x16\x03\x01\x02", 400, "bad-request"),
    (b"GET http:// HTTP/1.1\r\n\r\n", 400, "bad-request"),
    (CHUNKED + b"1;" + b"x" * 3_000_000, 400, "bad-request"),
    (CHUNKED + b"0\r\n" + b"x: y\r\n" * 200 + b"\r\n", 431, "head-too-large"),
    (CHUNKED + b"0\r\nx: " + b"y" * 3_000_000, 400, "bad-request"),
    (CHUNKED + b"zz\r\n", 400, "bad-request"),
]


@pytest.mark.parametrize(("sent", "status", "kind"), TOO_MUCH, ids=range(len(TOO_MUCH)))
def test_what_is_too_much_is_refused(on_site: Any, sent: bytes, status: int, kind: str) -> None:
    async def test(site: Site) -> None:
        answer = await site.ask(sent)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
        assert b"application/problem+json" in answer and f"/problems/{kind}".encode() in answer
        assert b"cache-control: no-store" in answer
        assert kinds(site) == [kind]
        assert site.running == 0
        assert site.figures.refusals == {kind: 1}
        assert site.figures.requests == {("other", "none", status): 1}

    on_site(test)


def test_a_head_of_just_the_limits_is_taken(on_site: Any) -> None:
    fixed = b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 99 + b"connection: close\r\n\r\n"
    long = b"GET / HTTP/1.1\r\nconnection: close\r\nx: %s\r\n\r\n"

    async def test(site: Site) -> None:
        assert (await site.ask(fixed)).startswith(b"HTTP/1.1 200 ")
        assert (await site.ask(long % (b"x" * 65_000))).startswith(b"HTTP/1.1 200 ")
        # The end of the head comes apart.
        reader, writer = await site.open()
        for byte in GET:
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        assert kinds(site) == []

    on_site(test)


@pytest.mark.parametrize(
    ("sent", "answered"),
    [(b"", b""), (b"GET / HTTP/1.1\r\nho", b"408"), (POST % (10, b"abc"), b"408"), (CHUNKED + b"5\r\nab", b"408")],
    ids=["nothing", "half a head", "half a body", "half a chunk"],
)
def test_the_times_of_connections_end(on_site: Any, sent: bytes, answered: bytes) -> None:
    async def test(site: Site) -> None:
        answer = await site.ask(sent)
        assert answer[9:12] == answered, answer
        await until(lambda: not site.state.connections and not site.running)

    on_site(test, head_s=0.2, body_grace_s=0.2)


def test_a_connection_ends_when_it_is_idle(on_site: Any) -> None:
    async def test(site: Site) -> None:
        answer = await site.ask(GET + POST % (3, b"abc"))
        assert answer.count(b"HTTP/1.1 200") == 2 and answer.endswith(b"POST /p 3\n")
        assert kinds(site) == []

    on_site(test)


def test_a_head_that_drips_ends(on_site: Any) -> None:
    async def test(site: Site) -> None:
        reader, writer = await site.open()
        writer.write(GET)
        assert (await reader.readuntil(b"/livez 0\n")).startswith(b"HTTP/1.1 200")
        rest = asyncio.create_task(_rest(reader))
        while not rest.done():
            writer.write(b"G")
            await asyncio.sleep(0.02)
        assert site.requests == 1
        writer.close()

    on_site(test, head_s=0.3)


def test_a_body_may_be_slow_while_the_app_does_not_read_it(on_site: Any) -> None:
    async def test(site: Site) -> None:
        site.go.clear()
        reader, writer = await site.open()
        writer.write(POST % (1_000_000, b"x" * 1_000_000))
        await until(lambda: site.running == 1)
        await asyncio.sleep(0.5)
        site.go.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200"), kinds(site)
        writer.close()

    on_site(test, body_grace_s=0.2, body_bytes_per_s=1e9)


def test_pipelined_requests_are_answered_in_order_and_held_until_then(on_site: Any) -> None:
    count = 3_000

    async def test(site: Site) -> None:
        site.go.clear()
        reader, writer = await site.open()
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % n for n in range(count)))
        await until(lambda: site.requests == 1)
        await asyncio.sleep(0.1)
        assert site.requests == 1 and len(site.state.connections) == 1
        site.go.set()
        for n in range(count):
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readline() == b"GET /%d 0\n" % n
        writer.close()

    on_site(test, idle_s=5)


def test_pipelined_requests_behind_bodies(on_site: Any) -> None:
    chunks = CHUNKED + b"3\r\nabc\r\n" * 100 + b"0\r\n\r\n"

    async def test(site: Site) -> None:
        answer = await site.ask((POST % (70_000, b"x" * 70_000) + chunks + GET) * 3)
        assert [body.split(b"\n")[0] for body in answer.split(b"\r\n\r\n")[1:]] == [
            b"POST /p 70000",
            b"POST /p 300",
            b"GET /livez 0",
        ] * 3
        # Behind a chunked body only a few are accepted at once, and all of these are answered.
        site.go.clear()
        asked = asyncio.create_task(site.ask(chunks + GET * 100))
        await until(lambda: site.running == 1)
        site.go.set()
        assert 2 <= (await asked).count(b"HTTP/1.1 200") < 100

    on_site(test)


def test_who_does_not_read_is_not_read_from(on_site: Any) -> None:
    async def test(site: Site) -> None:
        site.answer = b"x" * 100_000
        _, writer = await site.open()
        sent = 0
        writer.transport.set_write_buffer_limits(high=0)  # type: ignore[attr-defined]
        try:
            async with asyncio.timeout(1):
                while True:
                    writer.write(GET * 1000)
                    await writer.drain()
                    sent += 1000
        except TimeoutError:
            pass
        assert site.requests < 500
        # And it is given up in the end.
        LIMITS.unread_s = 0.1
        await until(lambda: not site.state.connections)
        writer.close()

    on_site(test)


def test_a_body_that_was_refused_is_not_taken_for_ever(on_site: Any) -> None:
    early = CHUNKED.replace(b"/p", b"/early")

    async def test(site: Site) -> None:
        answer = await site.ask(early + b"3\r\nabc\r\n")
        assert answer.startswith(b"HTTP/1.1 401") and answer.count(b"HTTP/1.1") == 1
        # Where its end comes soon, the connection can be used again.
        answer = await site.ask(early + b"3\r\nabc\r\n" * 50_000 + b"0\r\n\r\n" + GET)
        assert answer.count(b"HTTP/1.1 401") == answer.count(b"HTTP/1.1 200") == 1, answer
        assert kinds(site) == []

    on_site(test, discard_s=0.3)


def test_beyond_the_limit_the_longest_waiting_gives_way(on_site: Any) -> None:
    async def test(site: Site) -> None:
        silent = [await site.open() for _ in range(3)]
        await until(lambda: len(site.state.connections) == 3)
        assert (await site.ask(b"GET /x HTTP/1.1\r\nconnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await _rest(silent[0][0]) == b""
        assert len(site.state.connections) == 2 and "connection dropped" in kinds(site)
        for _, writer in silent:
            writer.close()

    on_site(test, connections=3, head_s=60)


def test_while_all_are_busy_only_probes_are_answered(on_site: Any) -> None:
    async def test(site: Site) -> None:
        site.go.clear()
        busy = [await site.open() for _ in range(2)]
        for _, writer in busy:
            writer.write(GET)
        await until(lambda: site.running == 2)
        refused = await site.ask(b"GET /x HTTP/1.1\r\n\r\n")
        assert refused.startswith(b"HTTP/1.1 503") and b"too many connections" in refused
        assert b"cache-control: no-store" in refused
        assert site.figures.refusals == {"busy": 1} and site.figures.requests == {("GET", "none", 503): 1}
        probe = asyncio.create_task(site.ask(GET))
        await until(lambda: site.running == 3)
        site.go.set()
        assert (await probe).startswith(b"HTTP/1.1 200")
        for reader, writer in busy:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()

    on_site(test, connections=2)


def test_the_limit_follows_the_free_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(connections.os, "listdir", lambda _: [""] * 100)
    assert connections._limit(20) == 20 + 924 - 64
    monkeypatch.setattr(connections.os, "listdir", lambda _: [""] * 1020)
    assert connections._limit(20) == 1
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    assert connections._limit(20) == LIMITS.connections


def test_who_holds_most_of_what_is_buffered_is_dropped(on_site: Any) -> None:
    async def test(site: Site) -> None:
        hoarders = [await site.open() for _ in range(10)]
        for _, writer in hoarders:
            writer.write(b"GET / HTTP/1.1\r\nx: " + b"x" * 60_000)
            await writer.drain()
        await until(lambda: len(site.state.connections) < 10)
        assert "connection dropped" in kinds(site)
        for _, writer in hoarders:
            writer.close()

    on_site(test, buffered_bytes=300_000, head_s=60)


def test_an_answer_that_has_begun_is_not_mixed_with_a_refusal(on_site: Any) -> None:
    async def test(site: Site) -> None:
        site.go.clear()
        asked = asyncio.create_task(site.ask(GET + b"nonsense\r\n\r\n"))
        await until(lambda: site.running == 1)
        site.go.set()
        answer = await asked
        first, _, rest = answer.partition(b"GET /livez 0\n")
        assert first.startswith(b"HTTP/1.1 200") and rest.startswith(b"HTTP/1.1 400"), answer

    on_site(test)


def test_repeated_refusals_are_one_line(on_site: Any) -> None:
    async def test(site: Site) -> None:
        for _ in range(20):
            await site.ask(b"nonsense\r\n\r\n")
        assert kinds(site) == ["bad-request"]

    on_site(test, linger_s=0.02)
