"""Clients of the test's server: of `every_server` where the test names that, else of `redis_server`."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from supervisor.broker.command_connection import CommandConnection


def server_of(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("every_server" if "every_server" in request.fixturenames else "redis_server")


@pytest.fixture
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    async with server_of(request).client() as client:
        yield client


@pytest.fixture
def sync(request: pytest.FixtureRequest) -> Iterator[Any]:
    with server_of(request).sync() as client:
        yield client


@pytest.fixture
async def commands(redis_url: str) -> AsyncIterator[CommandConnection]:
    made = CommandConnection(redis_url)
    yield made
    await made.close()
