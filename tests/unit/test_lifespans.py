"""The lifespans of a worker when one of them fails: those that were entered before are left."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.errors import HandlerError
from supervisor.handling.worker_lifespan import Lifespan
from supervisor.worker.lifespans import LifespanFailedError, WorkerLifespans


def lifespans(*functions: Any) -> WorkerLifespans:
    made = tuple(Lifespan(function.__name__, "file.py:1", function) for function in functions)
    spec: Any = SimpleNamespace(lifespans=made)
    return WorkerLifespans([spec])


class Pool:
    """What a lifespan opens and closes."""

    def __init__(self) -> None:
        self.opened = self.closed = 0

    async def __call__(self) -> AsyncIterator[dict[str, object]]:
        self.opened += 1
        yield {"pool": self}
        self.closed += 1


async def fails() -> AsyncIterator[None]:
    raise OSError("no model")
    yield


async def yields_a_list() -> AsyncIterator[list[int]]:
    yield []


async def never_ready() -> AsyncIterator[None]:
    await asyncio.Event().wait()
    yield


@pytest.mark.parametrize(("second", "error"), [(fails, LifespanFailedError), (yields_a_list, HandlerError)])
async def test_those_before_the_one_that_fails_are_left(second: Any, error: type[Exception]) -> None:
    pool = Pool()

    async def opens() -> AsyncIterator[dict[str, object]]:
        async for state in pool():
            yield state

    with pytest.raises(error):
        await lifespans(opens, second).enter()
    assert (pool.opened, pool.closed) == (1, 1)


async def test_those_before_the_one_that_was_cancelled_are_left() -> None:
    pool = Pool()

    async def opens() -> AsyncIterator[dict[str, object]]:
        async for state in pool():
            yield state

    entering = asyncio.create_task(lifespans(opens, never_ready).enter())
    while not pool.opened:
        await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert (pool.opened, pool.closed) == (1, 1)
