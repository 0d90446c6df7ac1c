"""TLS: a private authority, client certificates, and clear errors where one of them is wrong."""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from supervisor.broker.command_connection import CommandConnection
from supervisor.broker.connect import connection
from supervisor.broker.pipeline_connection import PipelineConnection
from supervisor.errors import EXIT_REDIS, EXIT_USAGE, PublishRefusedError
from supervisor.publisher import Publisher
from tests.support.certificates import Certificates, make_certificates
from tests.support.pool import Pool
from tests.support.recording import SIMPLE
from tests.support.servers import RedisServer, free_port
from tests.support.topologies import Sentinel, tls_options, tls_server
from tests.topologies.everything import CONFIG, HANDLERS, an_app_works, blocking_clients_work, everything_works


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(certificates: Certificates) -> Iterator[RedisServer]:
    with tls_server(certificates) as running:
        yield running


def test_a_pool_works_over_tls_with_client_certificates(
    certificates: Certificates, start_pool: Callable[..., Pool]
) -> None:
    with tls_server(certificates, client_certificates=True) as running:
        query = (
            f"ssl_ca_certs={certificates.ca}&ssl_certfile={certificates.client}&ssl_keyfile={certificates.client_key}"
        )
        pool = start_pool(HANDLERS, redis_url=f"{running.tcp_url}?{query}", api=True, config=CONFIG)
        everything_works(pool)


REFUSED = {
    "another authority": ("rediss", "ssl_ca_certs={other_ca}", EXIT_REDIS, "certificate that is not trusted"),
    "no authority": ("rediss", "", EXIT_REDIS, "ssl_ca_certs=FILE in the URL names its CA"),
    "no such file": ("rediss", "ssl_ca_certs=/no/such/file", EXIT_USAGE, "ssl_ca_certs: the file can't be read"),
    "no such option": ("rediss", "ssl_ca_cert={ca}", EXIT_USAGE, "redis-py has no option 'ssl_ca_cert'"),
    "no such value": ("rediss", "ssl_cert_reqs=CERT_NONE", EXIT_USAGE, "Invalid SSL Certificate Requirements Flag"),
    "without tls": ("redis", "", EXIT_REDIS, "write rediss://"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_with_the_certificates_is_said_once_at_boot(
    case: str, server: RedisServer, certificates: Certificates, tmp_path: Path
) -> None:
    scheme, query, code, words = REFUSED[case]
    url = server.tcp_url.replace("rediss", scheme) + "?" + query.format(**vars(certificates))
    with Pool(tmp_path / "p", SIMPLE, redis_url=url, config="redis.connect_timeout_s = 2") as pool:
        pool.start(ready=False)
        assert pool.wait() == code, pool.output
        assert words in pool.output
        assert pool.output.count(words) == 1
        if case in ("another authority", "no such option"):
            told = pool.command("streams", "--json")
            assert told.returncode == code and words in told.stderr


def test_a_client_without_a_certificate_is_told_what_is_missing(certificates: Certificates, tmp_path: Path) -> None:
    with tls_server(certificates, client_certificates=True) as running:
        url = f"{running.tcp_url}?ssl_ca_certs={certificates.ca}"
        with Pool(tmp_path / "p", SIMPLE, redis_url=url, config="redis.connect_timeout_s = 2") as pool:
            pool.start(ready=False)
            assert pool.wait() == EXIT_REDIS, pool.output
            assert "ssl_certfile=FILE&ssl_keyfile=FILE" in pool.output


@pytest.fixture
def resetting_url(certificates: Certificates) -> Iterator[str]:
    """A server that resets each connection after the handshake, so that no TLS alert arrives."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server, certificates.server_key)

    def serve() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            with accepted, contextlib.suppress(OSError), context.wrap_socket(accepted, server_side=True) as spoken:
                spoken.recv(1)
                spoken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = threading.Thread(target=serve)
        serving.start()
        yield f"rediss://127.0.0.1:{listener.getsockname()[1]}?ssl_ca_certs={certificates.ca}"
        listener.shutdown(socket.SHUT_RDWR)
        serving.join()


def test_a_reset_that_hides_the_alert_is_explained(
    resetting_url: str, certificates: Certificates, tmp_path: Path
) -> None:
    hint = "may want a certificate of the client: ssl_certfile=FILE&ssl_keyfile=FILE"
    own = f"&ssl_certfile={certificates.client}&ssl_keyfile={certificates.client_key}"
    for number, (query, is_given) in enumerate((("", True), (own, False))):
        done = Pool(tmp_path / f"p{number}", SIMPLE, redis_url=resetting_url + query).command("streams")
        assert done.returncode == EXIT_REDIS, done.stderr
        assert (hint in done.stderr) == is_given, done.stderr


def test_tls_where_the_server_has_none(tmp_path: Path) -> None:
    with RedisServer(tcp=True) as plain:
        url = plain.tcp_url.replace("redis:", "rediss:")
        with Pool(tmp_path / "p", SIMPLE, redis_url=url, config="redis.connect_timeout_s = 2") as pool:
            pool.start(ready=False)
            assert pool.wait() == EXIT_REDIS, pool.output
            assert "write redis://" in pool.output


async def test_the_sentinels_speak_tls_too(certificates: Certificates) -> None:
    with tls_server(certificates) as master:
        port, ours = free_port(), int(master.tcp_url.rpartition(":")[2].removesuffix("/0"))
        with Sentinel(master.flavour, "mymaster", ours, options=tls_options(certificates, port)) as sentinel:
            url = f"rediss+sentinel://127.0.0.1:{port}/mymaster?ssl_ca_certs={certificates.ca}"
            await an_app_works(url)
            await blocking_clients_work(url)
            with pytest.raises(PublishRefusedError, match="certificate verify failed"):
                async with Publisher(url.partition("?")[0]) as publisher:
                    await publisher.publish("events", {"n": "1"})
            await asked_sentinels_are_left_at_once(url, sentinel)


async def asked_sentinels_are_left_at_once(url: str, sentinel: Sentinel) -> None:
    route = connection(url)._route
    sentinels = route.sentinels()
    await route.master(sentinels)
    [asked] = sentinels._connections
    await is_closed_at_once(asked, sentinels.close, sentinel)


async def is_closed_at_once(held: Any, close: Callable[[], Awaitable[None]], server: RedisServer) -> None:
    """Fail when a connection stays open until its server, which is frozen, has ended TLS."""
    own = held._writer.get_extra_info("socket")
    server.pause()
    try:
        await close()
        for _ in range(3):
            await asyncio.sleep(0)
        assert own.fileno() == -1
    finally:
        server.resume()


async def test_blocking_clients(server: RedisServer, certificates: Certificates) -> None:
    await blocking_clients_work(f"{server.tcp_url}?ssl_ca_certs={certificates.ca}")


async def test_a_dropped_connection_does_not_wait_for_the_end_of_tls(
    server: RedisServer, certificates: Certificates
) -> None:
    """Else the socket of a program that ends then stays open, which Python reports."""
    commands = CommandConnection(f"{server.tcp_url}?ssl_ca_certs={certificates.ca}")
    await commands.call("PING")
    await is_closed_at_once(commands._connection, commands.close, server)


async def test_a_publisher_that_was_given_a_client_does_not_wait_for_it_either(
    server: RedisServer, certificates: Certificates
) -> None:
    made = PipelineConnection(Redis.from_url(f"{server.tcp_url}?ssl_ca_certs={certificates.ca}"), connect_timeout_s=2)
    await made.open(1)
    await is_closed_at_once(made._connection, made.drop, server)


async def test_a_close_that_takes_too_long_closes_the_socket(server: RedisServer, certificates: Certificates) -> None:
    made = PipelineConnection(f"{server.tcp_url}?ssl_ca_certs={certificates.ca}", connect_timeout_s=1.0)
    await made.open(1)
    await is_closed_at_once(made._connection, made.close, server)
