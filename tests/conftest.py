"""Fixtures that all tests share: real servers, clients, pools.

1. `redis_server` is fresh for each test and may be killed; `redis_url` and `redis` belong to it.
2. `every_server` runs the test once on each kind of server that was found.
3. `start_pool` starts real pools and, at the end, fails the test if one left a process behind.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from tests.delivery.table import show
from tests.support.flavours import flavours, more_flavours
from tests.support.pool import Pool
from tests.support.servers import AnyServer, default_flavour, start_server
from tests.support.standins import Standins

pytest_plugins = ("tests.support.cpu", "tests.support.open_transports")

#: Quick ones first: a broken rule shows before the first process is started.
ORDER = ("unit", "model", "redis", "testing", "http", "cli", "process", "guide", "faults", "delivery")
_SIGNALS = {
    signal.SIGINT: signal.default_int_handler,
    **dict.fromkeys((signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU), signal.SIG_DFL),
}
#: Fixtures that pools connect to.
SERVERS = frozenset(
    {"redis_server", "durable_server", "every_server", "server", "tcp_server", "proxy", "pair"}
    | {"cluster", "replicated", "sentinels"}
)

# The same examples in each run, and no bound on their time. `--hypothesis-profile explore` tries others.
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", settings.get_profile("same"), derandomize=False, max_examples=1_000)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How thoroughly the delivery cases are run."""
    group = parser.getgroup("delivery", "the cases of tests/delivery")
    group.addoption(
        "--seeds", type=int, default=1, help="run the long form of each case with the seeds 1 to N (default: 1)"
    )
    group.addoption("--seed", type=int, help="run each long form with this seed alone")
    group.addoption("--load-s", type=float, default=4.0, help="how long the load of a long form lasts (default: 4 s)")
    group.addoption("--soak-s", type=float, default=12.0, help="how long the soak lasts (default: 12 s)")


def pytest_configure() -> None:
    """Undo what a shell does to a job in the background, and nohup: the pools would ignore these signals, too."""
    for number, default in _SIGNALS.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what became of the messages of the delivery cases."""
    show(terminalreporter)


def pytest_report_header() -> str:
    """Say which servers the tests run on."""
    return "servers: " + ", ".join(flavour.name for flavour in (*flavours(), *more_flavours()))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`every_server` stands for all servers that were found."""
    if "every_server" in metafunc.fixturenames:
        more = [pytest.param(flavour, id=flavour.name, marks=pytest.mark.long) for flavour in more_flavours()]
        found = [pytest.param(flavour, id=flavour.name) for flavour in flavours()]
        metafunc.parametrize("every_server", [*found, *more], indirect=True)


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests on uvloop what runs on it in a pool: its connections fail in their own ways."""
    if item.path.parent.name == "redis":
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by folder, and keep the order within each."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else ""
        return ORDER.index(folder) if folder in ORDER else len(ORDER)

    items.sort(key=place)


@pytest.fixture
def redis_server() -> Iterator[AnyServer]:
    """A fresh server without persistence that the test may kill, stop, freeze and restart."""
    with start_server(default_flavour()) as server:
        yield server


@pytest.fixture
def durable_server() -> Iterator[AnyServer]:
    """The same with `appendonly yes`: what was confirmed is there after a restart."""
    with start_server(default_flavour(), appendonly=True) as server:
        yield server


@pytest.fixture
def every_server(request: pytest.FixtureRequest) -> Iterator[AnyServer]:
    """A fresh server of each kind in turn."""
    with start_server(request.param) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: AnyServer) -> str:
    """The URL of `redis_server`."""
    return redis_server.url


@pytest.fixture
async def redis(redis_server: AnyServer) -> AsyncIterator[Redis]:
    """A client of `redis_server`, bytes out."""
    async with redis_server.client() as client:
        yield client


@pytest.fixture
def servers_first(request: pytest.FixtureRequest) -> None:
    """Set up the test's servers before its pools: a pool is closed first and then still has its server."""
    for name in request.fixturenames:
        if name in SERVERS:
            request.getfixturevalue(name)


@pytest.fixture
def start_pool(servers_first: None, tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    """Start a pool: `start_pool(handlers_text, redis_url=..., workers=2, config="", api=False, ready=True)`."""
    pools: list[Pool] = []

    def start(handlers: str, *, ready: bool = True, **options: Any) -> Pool:
        pool = Pool(tmp_path / f"project{len(pools)}", handlers, **options)
        pools.append(pool)
        return pool.start(ready=ready)

    yield start
    failures = []
    for pool in reversed(pools):
        try:
            pool.close()
        except AssertionError as error:
            failures.append(error)
    if failures:
        raise failures[0]


@pytest.fixture
def standins(tmp_path: Path) -> Iterator[Callable[..., Standins]]:
    """An arbiter with stand-in children, not started: `standins(workers=2, orders={...}, pool="...")`."""
    made: list[Standins] = []

    def make(**options: Any) -> Standins:
        made.append(Standins(tmp_path / f"p{len(made)}", **options))
        return made[-1]

    yield make
    for pool in made:
        with pool:
            pass
