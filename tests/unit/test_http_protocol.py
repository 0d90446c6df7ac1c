"""The limits of a client's connection, over real sockets, with the times cut short."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from api.connections import LIMITS
from tests.unit.http_site import CHUNKED, GET, POST, Site, kinds, rest_of, site_runner, until


@pytest.fixture
def on_site(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return site_runner(monkeypatch)


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
        rest = asyncio.create_task(rest_of(reader))
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
