"""Redis as it is run in production, in processes of a test's own: with TLS, behind Sentinel, as a cluster."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Self

import pytest
import redis as redis_py

from tests.support.certificates import Certificates
from tests.support.flavours import Flavour, own_flavours
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import eventually


def binaries() -> list[Flavour]:
    """The kinds of server that are a program here. Skips the test where there is none."""
    found = [flavour for flavour in own_flavours() if flavour.binary]
    if not found:
        pytest.skip("no server program is here")
    return found


def tls_server(certificates: Certificates, *, client_certificates: bool = False) -> RedisServer:
    """A server whose only TCP port speaks TLS (`tls_port`). Skips the test where no server can."""
    port = free_port()
    options = ["--tls-port", str(port), "--tls-ca-cert-file", str(certificates.ca)]
    options += ["--tls-cert-file", str(certificates.server), "--tls-key-file", str(certificates.server_key)]
    options += ["--tls-auth-clients", "yes" if client_certificates else "no"]
    for flavour in binaries():
        with contextlib.suppress(AssertionError):  # built without TLS
            server = RedisServer(flavour, options=tuple(options))
            server.tcp_url = f"rediss://127.0.0.1:{port}/0"
            return server
    pytest.skip("no server here was built with TLS")


class Group:
    """Several servers that end together."""

    def __init__(self) -> None:
        self.servers: list[RedisServer] = []

    def close(self) -> None:
        """End them all and remove their data."""
        for server in self.servers:
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Admin = redis_py.Redis


def bare(server: RedisServer, **options: Any) -> Admin:
    """A blocking client of that one server."""
    return server.sync(decode_responses=True, **options)


__all__ = ["Admin", "Group", "bare", "binaries", "eventually", "tls_server"]
