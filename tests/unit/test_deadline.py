"""A deadline ends what takes too long, as asyncio.timeout does, with one timer for many waits."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from supervisor.broker.deadline import Deadline

#: Longer than any test.
LONG_S = 1_000.0


def timers(loop: asyncio.AbstractEventLoop) -> int:
    return len([timer for timer in loop._scheduled if not timer.cancelled()])  # type: ignore[attr-defined]


async def test_many_waits_share_one_timer() -> None:
    deadline, loop = Deadline(), asyncio.get_running_loop()
    before = timers(loop)
    for _ in range(20):
        with deadline.after(LONG_S):
            await asyncio.sleep(0)
    assert timers(loop) == before + 1


async def test_what_takes_too_long_raises_and_the_next_wait_is_free() -> None:
    deadline = Deadline()
    for _ in range(3):
        with pytest.raises(TimeoutError), deadline.after(0.001):
            await asyncio.Event().wait()
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
        with deadline.after(LONG_S):
            await asyncio.sleep(0)


async def test_a_shorter_limit_is_kept_after_a_longer_one() -> None:
    deadline = Deadline()
    with deadline.after(LONG_S):
        pass
    with pytest.raises(TimeoutError), deadline.after(0.001):
        await asyncio.Event().wait()


async def test_the_timer_of_an_earlier_wait_does_not_end_a_later_one() -> None:
    deadline, loop = Deadline(), asyncio.get_running_loop()
    with deadline.after(0.001):
        pass
    passed = loop.create_future()
    loop.call_later(0.01, passed.set_result, None)
    with deadline.after(LONG_S):
        await passed


async def test_a_cancellation_from_outside_stays_one() -> None:
    deadline = Deadline()

    async def wait() -> None:
        with deadline.after(LONG_S):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("outside_first", [False, True])
async def test_a_cancellation_beside_the_limit_wins(outside_first: bool) -> None:
    deadline, loop = Deadline(), asyncio.get_running_loop()

    async def wait() -> None:
        with deadline.after(LONG_S):
            deadline._due_s = loop.time() - 1
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    order: list[Callable[[], Any]] = [task.cancel, deadline._fired]
    for step in order if outside_first else reversed(order):
        step()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_body_is_kept() -> None:
    with pytest.raises(ValueError, match="its own"), Deadline().after(LONG_S):
        raise ValueError("its own")
