"""Fixtures of the fault tests: each case gets its pools here and fails if one of them left anything behind.

1. `start_pool` (real Redis) and `standins` (no Redis) start pools. When the case is over, a running
   arbiter must hold no more descriptors and threads than when it was READY, and no zombie; then it is
   ended, and no process and no socket file of it may be left.
2. `bound` measures; the table at the end of the session shows all that was measured.
"""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import Bounds, Row, Watch, show
from tests.support.pool import Pool
from tests.support.standins import Standins

ROWS = pytest.StashKey[list[Row]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the measurements."""
    show(config.stash.get(ROWS, []), terminalreporter)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return the folder of the first pool, before it is started."""
    made = tmp_path / "project0"
    made.mkdir()
    return made


@pytest.fixture
def bound(request: pytest.FixtureRequest) -> Bounds:
    """`bound.check(what, values, bound)`, `with bound.within(what, bound_ms)`."""
    rows = request.config.stash.setdefault(ROWS, [])
    return Bounds(request.node.name.removeprefix("test_"), rows)


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Measures pools that the fixtures do not: call `watch.measure(pool)` when it is READY, or READY again."""
    watching = Watch()
    yield watching
    watching.assert_ended()


# `watch` comes first, so that it checks last, after the pools were closed.
@pytest.fixture
def start_pool(watch: Watch, bound: Bounds, start_pool: Callable[..., Pool]) -> Iterator[Callable[..., Pool]]:
    """A real pool as in tests/conftest.py, checked by `watch`."""

    def start(handlers: str, *, ready: bool = True, **options: Any) -> Pool:
        pool = start_pool(handlers, ready=ready, **options)
        watch.add(pool)
        bound.started(pool)
        if ready:
            watch.measure(pool)
        return pool

    yield start
    watch.assert_flat()


@pytest.fixture
def standins(watch: Watch, bound: Bounds, tmp_path: Path) -> Iterator[Callable[..., Standins]]:
    """Start an arbiter with stand-in children: `standins(workers=2, orders=..., pool=..., ready=True)`."""
    made: list[Standins] = []

    def start(*, ready: bool = True, **options: Any) -> Standins:
        pool = Standins(tmp_path / f"p{len(made)}", **options)
        made.append(pool)
        watch.add(pool)
        bound.started(pool)
        pool.start(ready=ready)
        if ready:
            watch.measure(pool)
        return pool

    yield start
    try:
        watch.assert_flat()
        for pool in made:
            if pool.process is not None and pool.process.poll() is None:
                pool.send(signal.SIGQUIT)
                pool.wait()
    finally:
        for pool in made:
            with pool:
                pass
