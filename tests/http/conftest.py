"""One service and one server for all tests that harm neither; tests that do start their own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as redis_py

from tests.http.service import Service
from tests.support.servers import AnyServer, default_flavour, start_server


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AnyServer, Service]]:
    with (
        start_server(default_flavour()) as server,
        Service(tmp_path_factory.mktemp("service"), server.url, config="[api]\nmax_body_bytes = 1048576") as service,
    ):
        yield server, service


@pytest.fixture
def store(_shared: tuple[AnyServer, Service]) -> Iterator[redis_py.Redis]:
    """A client of the shared server, empty at the start of each test; strings out."""
    with _shared[0].sync(decode_responses=True) as client:
        client.flushdb()
        yield client


@pytest.fixture
def service(_shared: tuple[AnyServer, Service], store: redis_py.Redis) -> Service:
    """The shared service."""
    return _shared[1]


@pytest.fixture
def http(service: Service) -> httpx.Client:
    """A client of the shared service that repeats what a busy machine refused."""
    return service.patient


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start a service for this test: `start_service(redis_url, config="")`; ended with the test."""
    services: list[Service] = []

    def start(redis_url: str, **options: Any) -> Service:
        services.append(Service(tmp_path / f"service{len(services)}", redis_url, **options))
        return services[-1]

    yield start
    failures = []
    for one in services:
        try:
            one.__exit__(None, None, None)
        except AssertionError as error:
            failures.append(error)
    if failures:
        raise failures[0]
