"""The limits of all connections together, over real sockets."""

import asyncio
import resource
from collections.abc import Callable
from typing import Any

import pytest

from api import connections
from api.connections import LIMITS
from tests.unit.http_site import GET, Site, kinds, rest_of, site_runner, until


@pytest.fixture
def on_site(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return site_runner(monkeypatch)


def test_beyond_the_limit_the_longest_waiting_gives_way(on_site: Any) -> None:
    async def test(site: Site) -> None:
        silent = [await site.open() for _ in range(3)]
        await until(lambda: len(site.state.connections) == 3)
        assert (await site.ask(b"GET /x HTTP/1.1\r\nconnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await rest_of(silent[0][0]) == b""
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


def test_repeated_refusals_are_one_line(on_site: Any) -> None:
    async def test(site: Site) -> None:
        for _ in range(20):
            await site.ask(b"nonsense\r\n\r\n")
        assert kinds(site) == ["bad-request"]

    on_site(test, linger_s=0.02)
