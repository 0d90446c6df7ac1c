"""Tasks that wait for a change of a worker's state are woken when their own condition is true, and no earlier."""

import asyncio

import pytest

from supervisor.worker.run_control import RunControl


class Counted:
    """A condition that counts how often it was asked."""

    def __init__(self) -> None:
        self.value = False
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.value


async def turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_only_the_task_whose_condition_is_true_goes_on() -> None:
    control, first, second = RunControl(), Counted(), Counted()
    one = asyncio.create_task(control.until(first))
    other = asyncio.create_task(control.until(second))
    await turns()
    first.value = True
    control.notify()
    await turns()
    assert (one.done(), other.done()) == (True, False)
    second.value = True
    control.notify()
    await other


async def test_many_changes_of_one_turn_are_checked_once() -> None:
    control, condition = RunControl(), Counted()
    task = asyncio.create_task(control.until(condition))
    await turns()
    asked = condition.asked
    for _ in range(10):
        control.notify()
    await turns()
    assert condition.asked == asked + 1
    control.notify()
    await turns()
    assert condition.asked == asked + 2
    condition.value = True
    control.notify()
    await task


async def test_without_a_waiting_task_nothing_is_due() -> None:
    control, condition = RunControl(), Counted()
    control.notify()
    task = asyncio.create_task(control.until(condition))
    await turns()
    condition.value = True
    control.notify()
    await task


async def test_a_condition_that_turned_false_again_keeps_its_task_waiting() -> None:
    control = RunControl()
    free = asyncio.Event()
    free.set()
    taken = []

    async def take(name: str) -> None:
        await control.until(free.is_set)
        free.clear()
        taken.append(name)

    free.clear()
    tasks = [asyncio.create_task(take(name)) for name in ("first", "second")]
    await turns()
    free.set()
    control.notify()
    await turns()
    assert taken == ["first"]
    free.set()
    control.notify()
    await asyncio.gather(*tasks)
    assert taken == ["first", "second"]


async def test_an_error_of_a_condition_is_raised_in_its_own_task() -> None:
    control, fine = RunControl(), Counted()
    broken = False

    def condition() -> bool:
        if broken:
            raise ValueError("of the condition")
        return False

    one = asyncio.create_task(control.until(condition))
    other = asyncio.create_task(control.until(fine))
    await turns()
    broken = fine.value = True
    control.notify()
    with pytest.raises(ValueError, match="of the condition"):
        await one
    await other


async def test_a_limit_ends_the_wait_and_leaves_nothing_behind() -> None:
    control, condition = RunControl(), Counted()
    await control.until(condition, limit_s=0.01)
    asked = condition.asked
    control.notify()
    await turns()
    assert condition.asked == asked


async def test_a_paused_worker_that_stops_starts_nothing() -> None:
    control = RunControl()
    assert control.pause(True)
    assert not control.pause(True)
    task = asyncio.create_task(control.until_may_start())
    await turns()
    assert not task.done()
    control.stop()
    assert await task is False


async def test_a_resumed_worker_goes_on() -> None:
    control = RunControl()
    control.pause(True)
    task = asyncio.create_task(control.until_may_start())
    await turns()
    assert control.pause(False)
    assert await task is True


async def test_isolation_is_for_one_at_a_time() -> None:
    control, inside = RunControl(), []

    async def suspect(name: str) -> None:
        async with control.isolation():
            inside.append(name)
            assert not control.may_start
            await turns()
            assert inside[-1] == name

    await asyncio.gather(*(suspect(name) for name in "ab"))
    assert inside == ["a", "b"]
    assert control.may_start
