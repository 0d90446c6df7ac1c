"""The pytest plugin: fixtures for tests of handlers. It imports the rest when a fixture is used."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from supervisor.testing import TestPool


@pytest.fixture(scope="session")
def supervisor_config(pytestconfig: pytest.Config) -> Path | None:
    """The project's config.toml: that of pytest's root folder, if there is one. Override it to name another one."""
    path = pytestconfig.rootpath / "config.toml"
    return path if path.is_file() else None


@pytest.fixture
def supervisor_pool(supervisor_config: Path | None) -> "Callable[..., TestPool]":
    """`TestPool` with the project's config.toml: its options of handlers, its middleware and its `[app]`."""
    from supervisor.testing import TestPool

    return partial(TestPool, config=supervisor_config)


@pytest.fixture
def supervisor_deliver(supervisor_config: Path | None) -> Callable[..., Any]:
    """`supervisor.testing.deliver` with the project's config.toml."""
    from supervisor.testing import deliver

    return partial(deliver, config=supervisor_config)


@pytest.fixture
def supervisor_redis_url() -> Iterator[str]:
    """The URL of an empty database on a real server, which is started at the first use in a session."""
    from redis import Redis

    from supervisor.testing.embedded_server import database_url

    url = database_url()
    yield url
    with Redis.from_url(url) as redis:
        redis.flushdb()
