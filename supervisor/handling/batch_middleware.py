"""Runs the middleware of single messages around a batch, in the handler's own task.

Each message's middleware runs up to its `call_next`, one after another; then the batch is handled; then each runs to
its end, the last one first, as nested calls do. It gets the error of its own message.
"""

import asyncio
import inspect
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from supervisor.core.batch_results import batch_results, unreadable
from supervisor.errors import UsageError
from supervisor.handling.signature import name_of
from supervisor.messages import BatchError, Message, Retry


class _Gate:
    """The `call_next` of one message: the first call waits until the batch was handled.

    In a task of its own (`gather`, `wait_for`) the call can't wait for the batch, which waits for the middleware. Then
    the message is handled without the others.
    """

    def __init__(self, call_next: Callable[[list[Message]], Awaitable[Any]]) -> None:
        self._call_next = call_next
        self._task = asyncio.current_task()
        #: What the middleware passed on; None until it did.
        self.message: Message | None = None
        #: What it has to await.
        self.made: Awaitable[None] | None = None

    def __call__(self, message: Message) -> Awaitable[None]:
        self.made = self._pass_on(message)
        return self.made

    async def _pass_on(self, message: Message) -> None:
        if self.message is None and asyncio.current_task() is self._task:
            self.message = message
            await _Pause(self)
        else:  # in another task, or once more
            await self._call_next([message])


class _Pause:
    """Awaited at the gate: gives the gate to `_until_gate`, which takes it for no other awaitable."""

    def __init__(self, gate: _Gate) -> None:
        self._gate = gate

    def __await__(self) -> Generator[_Gate, None, None]:
        yield self._gate


class _Run:
    """One message on its way through the middleware."""

    def __init__(self, function: Callable[[Any, Any], Awaitable[Any]], message: Message, gate: _Gate) -> None:
        self.message = message
        self.gate = gate
        self._function = function
        self._steps = function(message, gate).__await__()
        #: What the middleware raised.
        self.error: BaseException | None = None

    async def go(self, error: BaseException | None = None) -> bool:
        """Run to the gate or to the end; return whether it is at the gate. `error` is raised where it waited.

        Raises only what ends the task, such as its cancellation.
        """
        try:
            if await _until_gate(self._steps, self.gate, error):
                return True
            check_awaited(self.gate.made, self._function)
        except Exception as raised:
            self.error = raised
        except BaseException as raised:
            self.error = raised
            raise
        return False


class _Batch:
    """A batch on its way through the middleware of its messages."""

    def __init__(self, call_next: Callable[[list[Message]], Awaitable[Any]]) -> None:
        self._call_next = call_next
        self.runs: list[_Run] = []
        #: Those that are at their gates.
        self._waiting: list[_Run] = []

    async def begin(self, function: Callable[[Any, Any], Awaitable[Any]], messages: list[Message]) -> None:
        """Run the middleware of each message up to its gate."""
        for message in messages:
            run = _Run(function, message, _Gate(self._call_next))
            self.runs.append(run)
            if await run.go():
                self._waiting.append(run)

    async def handle(self) -> dict[_Run, BaseException | None]:
        """Have the batch handled; return the error of each message that came through, None where there is none."""
        passed = [run.gate.message for run in self._waiting if run.gate.message is not None]
        if not passed:
            return {}
        try:
            await self._call_next(passed)
        except Exception as error:
            return dict(zip(self._waiting, _own_errors(passed, error), strict=True))
        return {}

    async def end(self, errors: dict[_Run, BaseException | None], ended: BaseException | None) -> None:
        """Run each to its end, with the error of its message; `ended` has ended the task. Raises what ends the task."""
        for run in reversed(self._waiting):
            if run.error is None:
                try:
                    await run.go(ended or errors.get(run))
                except BaseException as error:
                    ended = ended or error
        if ended is not None:
            raise ended


async def each_of_batch(
    function: Callable[[Any, Any], Awaitable[Any]],
    messages: list[Message],
    call_next: Callable[[list[Message]], Awaitable[Any]],
) -> None:
    """Run `function` around each message of the batch. Raises BatchError, or what all of them have failed with."""
    batch = _Batch(call_next)
    errors: dict[_Run, BaseException | None] = {}
    ended: BaseException | None = None
    cancellations = _cancellations()
    try:
        await batch.begin(function, messages)
        errors = await batch.handle()
    except BaseException as error:  # the task was cancelled
        ended = error
    try:
        await batch.end(errors, ended)
    except asyncio.CancelledError:
        timed_out = [run.error for run in batch.runs if isinstance(run.error, TimeoutError)]
        if not timed_out or _cancellations() > cancellations:
            raise
        # The `asyncio.timeout` of one message has ended the batch, and taken the cancellation back.
        raise timed_out[0] from None
    failed = {run.message.id: run.error for run in batch.runs if run.error is not None}
    if len(failed) == len(batch.runs) and len({id(error) for error in failed.values()}) == 1:
        raise failed.popitem()[1]
    if failed:
        raise BatchError(failed)


def check_awaited(made: Awaitable[Any] | None, function: Callable[..., Any]) -> None:
    """Raise UsageError if the middleware `function` has ended before what its last `call_next` returned."""
    if made is not None and getattr(made, "cr_frame", None) is not None:
        if inspect.iscoroutine(made) and inspect.getcoroutinestate(made) == inspect.CORO_CREATED:
            made.close()
        raise UsageError(
            f"middleware {name_of(function)} ended before the handler: write `await call_next(message)`, since the"
            " message is settled when the middleware ends"
        )


def _cancellations() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def _own_errors(batch: list[Message], error: Exception) -> list[BaseException | None]:
    """Return the error of each message. One that has no text is the only one to blame, if that is the error."""
    blamed = {id(message): own for message, own in unreadable(batch, error)}
    if blamed and len(batch) > len(blamed):
        return [
            blamed.get(id(message), Retry("another message of its batch had no text", after_s=0)) for message in batch
        ]
    return [own for _, own in batch_results(batch, error)]


@types.coroutine
def _until_gate(steps: Generator[Any, Any, Any], gate: _Gate, error: BaseException | None) -> Generator[Any, Any, bool]:
    """Run a middleware to its gate (True) or to its end (False); the task waits for all else that it waits for."""
    value: Any = None
    while True:
        try:
            awaited = steps.send(value) if error is None else steps.throw(error)
        except StopIteration:
            return False
        if awaited is gate:
            return True
        value = error = None
        try:
            value = yield awaited
        except BaseException as thrown:
            error = thrown
