"""The delivery cases' fixtures: `start_case`, in a short form and, as `long`, once with each seed of the session.

pytest tests/delivery -m long --seeds 5 --load-s 30
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.case import Case, Setting
from tests.delivery.table import PROPERTY

SHORT, SHORT_LOAD_S = "short", 2.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each case has a short form, unless it is marked as long, and long ones with the seeds of the session."""
    if "seed" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    seeds = [option("seed")] if option("seed") is not None else range(1, option("seeds") + 1)
    forms = [pytest.param(seed, option("load_s"), id=f"seed{seed}", marks=pytest.mark.long) for seed in seeds]
    if not metafunc.definition.get_closest_marker("long"):
        forms.insert(0, pytest.param(seeds[0], SHORT_LOAD_S, id=SHORT))
    metafunc.parametrize(("seed", "load_s"), forms)


@pytest.fixture
def load_s() -> float:
    """How long the load of a case lasts; `pytest_generate_tests` says it."""
    raise NotImplementedError


@pytest.fixture
def make_case(
    request: pytest.FixtureRequest, tmp_path: Path, seed: int, load_s: float
) -> Iterator[Callable[..., Case]]:
    """A case with its server, nothing else started: `make_case(workers=8, ...)`, see `Setting`."""
    made: list[Case] = []
    # Without the seed, which the table shows in another column.
    more = [part for part in request.node.callspec.id.split("-") if part not in (SHORT, f"seed{seed}")]
    name = " ".join([request.node.originalname.removeprefix("test_"), *more])

    def keep(row: dict[str, Any]) -> None:
        request.node.user_properties.append((PROPERTY, row))

    def make(**options: Any) -> Case:
        folder = tmp_path / f"case{len(made)}"
        folder.mkdir()
        case = Case(name, folder, seed, load_s, Setting(**options), keep)
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
