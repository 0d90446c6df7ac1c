"""The proxy that fault tests put before a server does what it says, and no more."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.proxy import REPLY, REQUEST, Proxy
from tests.support.waiting import eventually


@pytest.fixture
def proxy(redis_server: Any) -> Iterator[Proxy]:
    with Proxy(redis_server.url) as made:
        yield made


@pytest.fixture
def one(proxy: Proxy) -> Iterator[redis_py.Redis]:
    """A client with one connection, named `one`, that never retries."""
    with client(proxy, "one") as made:
        assert made.ping()
        yield made


def client(proxy: Proxy, name: str, timeout_s: float = 5.0) -> redis_py.Redis:
    return redis_py.Redis.from_url(
        proxy.url,
        retry=Retry(NoBackoff(), 0),
        client_name=name,
        single_connection_client=True,
        socket_timeout=timeout_s,
    )


def test_it_passes_on_what_it_gets(proxy: Proxy, one: redis_py.Redis) -> None:
    large = b"x" * 3_000_000
    one.set("k", large)
    assert one.get("k") == large
    assert [connection.name for connection in proxy.connections()] == ["one"]
    assert proxy.did == {"accepted": 1}


def test_latency_and_jitter(proxy: Proxy, one: redis_py.Redis) -> None:
    proxy.set(latency_s=0.05, jitter=0.2)
    began_s = time.monotonic()
    one.ping()
    round_trip_s = time.monotonic() - began_s
    assert round_trip_s >= 0.08
    with one.pipeline(transaction=False) as pipe:  # it delays, it does not slow down
        for n in range(200):
            pipe.set("k", b"x" * 10_000 + b"%d" % n)
        began_s = time.monotonic()
        pipe.execute()
    assert time.monotonic() - began_s < 20 * round_trip_s, "though it comes in many pieces"
    assert proxy.did["delayed"] > 2


def test_slices(proxy: Proxy, one: redis_py.Redis) -> None:
    proxy.set(slice_bytes=1)
    one.set("k", "v" * 500)
    assert one.get("k") == b"v" * 500
    assert proxy.did["slices"] > 1000


def test_bandwidth(proxy: Proxy, one: redis_py.Redis) -> None:
    one.set("k", b"x" * 50_000)
    proxy.set(bytes_per_s=100_000, slice_bytes=5_000)
    began_s = time.monotonic()
    assert len(one.get("k")) == 50_000  # type: ignore[arg-type]
    assert time.monotonic() - began_s > 0.4


@pytest.mark.parametrize("how", ["cut", "reset"])
def test_an_end_of_one_by_its_name(proxy: Proxy, one: redis_py.Redis, how: str) -> None:
    with client(proxy, "two") as two:
        two.ping()
        assert getattr(proxy, how)("one") == 1
        with pytest.raises(redis_py.ConnectionError, match="reset by peer" if how == "reset" else "closed"):
            one.ping()
        assert two.ping() and proxy.did[how] == 1
        assert one.ping(), "a new connection works"


@pytest.mark.parametrize("way", [REQUEST, REPLY])
def test_a_reset_in_the_middle(proxy: Proxy, one: redis_py.Redis, way: str) -> None:
    one.set("k", b"x" * 100_000)
    passed = proxy.connections()[0].passed[way]
    proxy.set(reset_after=passed + 50_000, reset_in=way)
    with pytest.raises(redis_py.ConnectionError):
        one.set("other", b"y" * 100_000)
        one.get("k")
    assert proxy.did["reset in the middle"] == 1
    proxy.set()
    assert one.exists("other") == (way == REPLY), "what comes in the middle of a request never arrives"


def test_a_black_hole_says_nothing_to_either_end(proxy: Proxy, redis_server: Any) -> None:
    with client(proxy, "lost", 0.3) as lost, redis_server.sync() as direct:
        lost.ping()
        assert proxy.swallow("lost") == 1
        with pytest.raises(redis_py.TimeoutError):
            lost.set("k", 1)
        assert proxy.did["swallowed bytes"] > 0 and not direct.exists("k")
        assert any(row["name"] == "lost" for row in direct.client_list()), "the server still believes in it"
        assert lost.ping(), "a new connection works"
        proxy.set(black_hole=True)
        with pytest.raises(redis_py.TimeoutError):
            client(proxy, "late", 0.3).ping()


def test_refused_and_unreachable(proxy: Proxy, redis_server: Any) -> None:
    proxy.set(refuse=True)
    with pytest.raises(redis_py.ConnectionError):
        client(proxy, "one").ping()
    proxy.set()
    redis_server.kill()
    with pytest.raises(redis_py.ConnectionError):
        client(proxy, "one").ping()
    assert (proxy.did["refused"], proxy.did["unreachable"]) == (1, 1)
    redis_server.start()
    assert client(proxy, "one").ping()


def test_faults_of_some_connections_only(proxy: Proxy, one: redis_py.Redis) -> None:
    proxy.set(black_hole=True, fits=lambda connection: connection.name == "two")
    with pytest.raises(redis_py.TimeoutError):
        client(proxy, "two", 0.3).ping()
    assert one.ping()


def test_it_can_be_led_to_another_server(proxy: Proxy, one: redis_py.Redis, durable_server: Any) -> None:
    one.set("where", "first")
    proxy.upstream = durable_server.url
    assert one.get("where") == b"first", "what is open stays where it is"
    proxy.cut()
    eventually(lambda: one.get("where") is None)
