"""The step of a task that awaits a DirectFuture runs within `wake`, as if the event loop had run it."""

import asyncio
from contextvars import ContextVar, copy_context

import pytest

from supervisor.broker.direct_future import DirectFuture

PLACE: ContextVar[str] = ContextVar("place", default="nowhere")


async def test_the_task_goes_on_before_wake_returns() -> None:
    seen: list[object] = []
    future = DirectFuture()

    async def wait() -> None:
        PLACE.set("inside")
        await future
        seen.extend((asyncio.current_task(), PLACE.get()))
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    future.wake()
    assert seen == [task, "inside"]
    assert (asyncio.current_task() is not task, PLACE.get()) == (True, "nowhere")
    with pytest.raises(TimeoutError):
        await task
    future.wake()


async def test_a_callback_of_the_loop_may_wake_it() -> None:
    future, seen = DirectFuture(), []

    async def wait() -> None:
        await future
        seen.append("awake")

    def wake() -> None:
        future.wake()
        seen.append("woken")

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(wake)
    await task
    assert seen == ["awake", "woken"]


async def test_without_at_once_the_loop_runs_it() -> None:
    future = DirectFuture()

    async def wait() -> str:
        await future
        return "awake"

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    future.wake(at_once=False)
    assert not task.done()
    assert await task == "awake"


async def test_an_early_wake_is_not_lost() -> None:
    future = DirectFuture()
    future.wake()
    await future


async def test_in_the_context_of_the_waiting_task_the_loop_runs_it() -> None:
    future, shared = DirectFuture(), copy_context()

    async def wait() -> str:
        await future
        return "awake"

    task = asyncio.get_running_loop().create_task(wait(), context=shared)
    await asyncio.sleep(0)
    shared.run(future.wake)
    assert not task.done()
    assert await asyncio.wait_for(task, 10) == "awake"


async def test_a_cancelled_task_is_not_woken() -> None:
    future, seen = DirectFuture(), []

    async def wait() -> None:
        try:
            await future
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    future.wake()
    assert seen == []
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


async def test_an_error_of_the_step_belongs_to_its_task() -> None:
    future = DirectFuture()

    async def wait() -> None:
        await future
        raise ValueError("of the task")

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    future.wake()
    with pytest.raises(ValueError, match="of the task"):
        await task
