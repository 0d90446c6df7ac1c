"""The delivery cases' fixtures: `start_case`, once with each seed of the session.

pytest tests/delivery --seeds 5 --load-s 30
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.case import Case, Setting
from tests.delivery.table import PROPERTY


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each case runs with the seeds 1 to `--seeds`, or with `--seed` alone."""
    if "seed" in metafunc.fixturenames:
        only = metafunc.config.getoption("seed")
        seeds = [only] if only is not None else range(1, metafunc.config.getoption("seeds") + 1)
        metafunc.parametrize("seed", seeds, ids=[f"seed{seed}" for seed in seeds])


@pytest.fixture
def make_case(request: pytest.FixtureRequest, tmp_path: Path, seed: int) -> Iterator[Callable[..., Case]]:
    """A case with its server, nothing else started: `make_case(workers=8, ...)`, see `Setting`."""
    made: list[Case] = []
    # Without the seed, which has a column of its own.
    more = [part for part in request.node.callspec.id.split("-") if part != f"seed{seed}"]
    name = " ".join([request.node.originalname.removeprefix("test_"), *more])

    def keep(row: dict[str, Any]) -> None:
        request.node.user_properties.append((PROPERTY, row))

    def make(**options: Any) -> Case:
        folder = tmp_path / f"case{len(made)}"
        folder.mkdir()
        case = Case(name, folder, seed, request.config.getoption("load_s"), Setting(**options), keep)
        made.append(case)
        return case

    yield make
    for case in reversed(made):
        case.close()


@pytest.fixture
def start_case(make_case: Callable[..., Case]) -> Callable[..., Case]:
    """The same with its pool READY and its load running."""

    def start(**options: Any) -> Case:
        return make_case(**options).start()

    return start
