"""Runs messages through one handler, at most `concurrency` at a time.

1. A runner is a task that outlives a message: it calls the handler for one message after another, so a message that
   never waits costs no Task. When a runner's message waits, another runner goes on with what is ready.
2. So a handler has a real `asyncio.current_task()`, which timeouts and task groups need.
3. A message that is done is noted at its source, where the settler takes it; `Failures` settles what was raised.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import copy_context
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from supervisor.broker.direct_future import DirectFuture
from supervisor.core.batch_results import batch_results, unreadable
from supervisor.core.pace import SLOW_SHARE
from supervisor.errors import HandlerTimeoutError
from supervisor.handling.decode import as_message
from supervisor.handling.middleware import compose
from supervisor.shared_figures import QUICK_S
from supervisor.worker.blocking_calls import calls_of
from supervisor.worker.emits import Emits
from supervisor.worker.process_calls import UndecodedError
from supervisor.worker.runner import Runner, current_runner, register
from supervisor.worker.thread_calls import HeldBackError
from supervisor.worker.time_limit import CANCEL_GRACE_S, TimeLimit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from supervisor.handling.loader import HandlerSpec
    from supervisor.messages import Message
    from supervisor.worker.resources import Resources
    from supervisor.worker.retry_or_dead_letter import Failures
    from supervisor.worker.source import Source

#: After a step of this length the event loop gets a turn. Messages that end within one are counted as quick.
STEP_MAX_S = QUICK_S


class Executor:
    """The ready and the running messages of one handler."""

    def __init__(self, spec: HandlerSpec, resources: Resources, failures: Failures, sources: Sequence[Source]) -> None:
        self._spec = spec
        self._sources = sources
        self.figures = sources[0].figures
        self._failures = failures
        self._settler = resources.settler
        self._control = resources.control
        self._bug = resources.bug
        self._loop = asyncio.get_running_loop()
        self.threads, decode, limit = calls_of(spec, resources, failures)
        self._unit = spec.options.batch_size if spec.batch else 1
        self._runners_max = max(1, limit // self._unit)
        self._limit = max(limit, self._unit)
        self._lacks = resources.lacks
        self._ready: deque[Message] = deque()
        #: What waits because the pool is paused or the handler's circuit is open.
        self._held: deque[Message] = deque()
        self._paused = False
        #: How many more messages may be started; infinity unless the handler fails for everything.
        self._startable = inf
        self._active: set[Runner] = set()
        self._idle: list[Runner] = []
        #: Messages of this handler wait for something: what is ready needs a runner each.
        self._messages_wait = False
        self._yielding = 0
        self._advance_due = False
        self._time_limit = TimeLimit(self._active, spec.options.timeout_s)
        self._aborting = False
        self._context = copy_context()
        self._emits = Emits(resources, self.figures)
        function = self._on_loop if spec.is_async else self._in_thread
        #: Awaited with a message or a batch: middleware, decoding and the handler.
        self._call = compose(spec.middleware, decode, function, batch=spec.batch)
        self._submitted = 0
        self._counted = 0
        self.step_max_s = min(STEP_MAX_S, spec.options.hold_ms / 1000 * SLOW_SHARE)
        self.busy_s = 0.0
        self._slowest_s = 0.0
        register(self)

    @property
    def in_hand(self) -> int:
        """How many messages run or are ready to."""
        return len(self._ready) + len(self._held) + self.running

    @property
    def running(self) -> int:
        """How many messages run."""
        if self._unit == 1:
            return len(self._active)
        return sum(len(runner.messages) for runner in self._active)

    @property
    def started(self) -> int:
        """How many messages have begun to run and have not ended; threads that were given up count."""
        return max(sum(len(r.messages) for r in self._active if r.started_s != inf), self.threads.running)

    @property
    def limit(self) -> int:
        """How many messages may run at the same time, fewer while the worker lacks something."""
        return max(self._lacks.reduced(self._limit), self._unit)

    @property
    def unstarted(self) -> int:
        """How many messages wait for their turn."""
        return len(self._ready) + len(self._held)

    @property
    def finished(self) -> int:
        """How many messages have run so far; too few while a runner was woken and has not begun."""
        return self._submitted - self.in_hand

    @property
    def due_s(self) -> float:
        """When the longest-running message must have ended, by `time.monotonic`; after that only a kill can end it."""
        if not (self._active or self.threads.running):
            return inf
        began = [runner.started_s for runner in self._active if runner.started_s]
        return min(*began, self.threads.oldest_s, inf) + self._spec.options.timeout_s + CANCEL_GRACE_S

    def messages(self) -> Iterator[Message]:
        """Yield the messages in hand."""
        yield from self._ready
        yield from self._held
        for runner in self._active:
            yield from runner.messages

    def measured(self) -> tuple[int, float, float]:
        """Return (messages run, seconds they held the loop, longest hold of one) since the last call."""
        finished = self.finished
        taken = max(0, finished - self._counted), self.busy_s, self._slowest_s
        self._counted, self.busy_s, self._slowest_s = finished, 0.0, 0.0
        return taken

    def submit(self, messages: Sequence[Message], *, at_once: bool = False) -> None:
        """Run these, in order, as soon as there is room; with `at_once` before returning, until the first one waits."""
        self._submitted += len(messages)
        if self._paused or self._startable < inf:
            self._held.extend(messages)
            self._hold_and_release()
        else:
            self._ready.extend(messages)
            self._advance(at_once)

    def pause(self, paused: bool) -> None:
        """Start nothing, or go on; what runs goes on."""
        self._paused = paused
        self._hold_and_release()

    def hold_to(self, run_max: float) -> None:
        """Start only so many messages that `run_max` run, until the next call."""
        if run_max == 0:
            self._hold()
        self._startable = run_max if run_max == inf else max(0, run_max - self.running - len(self._ready))
        self._hold_and_release()

    def _hold_and_release(self) -> None:
        if self._paused:
            self._hold()
        while self._held and self._startable > 0 and not self._paused:
            self._ready.append(self._held.popleft())
            self._startable -= 1
        self._advance()

    def _hold(self) -> None:
        while self._ready:
            self._held.appendleft(self._ready.pop())

    def note_idle(self) -> None:
        """Note in shared memory that no message runs: a process that ends now was not ended by one."""
        if not (self._aborting or self.in_hand):
            for source in self._sources:
                source.note_idle()

    def give_back(self) -> None:
        """Forget what is ready; it stays pending."""
        self._submitted -= self.unstarted
        self._ready.clear()
        self._held.clear()

    def cancel(self) -> list[asyncio.Task[None]]:
        """Cancel what runs, which stays pending; start and note nothing more. Return the tasks to wait for."""
        self._aborting = True
        self._time_limit.cancel()
        self.give_back()
        tasks = [runner.task for runner in (*self._active, *self._idle)]
        for task in tasks:
            task.cancel()
        return tasks

    async def _run(self, runner: Runner) -> None:
        run_ready = self._run_messages if self._spec.is_async and not self._spec.batch else self._run_units
        try:
            while True:
                goes_on = await run_ready(runner)
                self._ended(runner)
                if not goes_on:
                    return
                runner.idle = DirectFuture()
                self._idle.append(runner)
                await runner.idle
        except (asyncio.CancelledError, GeneratorExit):
            raise  # at the end, or a handler has cancelled the task that it once ran in
        except BaseException as error:
            if not self._aborting and not self._bug.done():
                self._bug.set_exception(error)
        finally:
            self._ended(runner)

    def _ended(self, runner: Runner) -> None:
        self._active.discard(runner)
        if not self._aborting:
            self.note_idle()
            self._control.notify()
            if self._ready:
                self._advance_soon()

    async def _run_messages(self, runner: Runner) -> bool:  # noqa: C901 - the hot path: a call more costs too much
        """Run what is ready, one message at a time; False when the runner has to end."""
        ready, handle, context = self._ready, self._spec.function, copy_context()
        decode = None if self._spec.decode is as_message else self._spec.decode
        if self._spec.middleware:
            handle, decode = self._call, None
        before_s = began_s = monotonic()
        quick = 0
        while ready:
            runner.in_hand = message = ready.popleft()
            try:
                result = await handle(message if decode is None else decode(message))
                if result is not None:
                    await self._emits.take(result)
            except BaseException as error:
                if not self._failed(runner, error):
                    self.figures.ran_quickly(quick, before_s - began_s)
                    return False
            else:
                if message.recorded:
                    self._emits.done(runner, (message,))
                else:
                    message.origin.done.append(message.entry)  # type: ignore[attr-defined]
            now_s = monotonic()
            if runner.started_s or now_s > runner.step_ends_s:
                # A message that takes longer than a step waits or ends it; the others need no measure of their own.
                self.figures.ran_quickly(quick, before_s - began_s)
                self._ran(runner, before_s, now_s)
                quick, began_s = 0, now_s
            else:
                quick += 1
            if copy_context() != context:  # the handler left context variables behind: the next one must not see them
                runner.in_hand = None
                self.figures.ran_quickly(quick, now_s - began_s)
                return False
            if now_s > runner.step_ends_s and ready:  # else it ends, and notes at once that nothing runs
                runner.in_hand = None
                await self._yield()
                began_s = now_s = monotonic()
            before_s = now_s
        runner.in_hand = None
        self.figures.ran_quickly(quick, before_s - began_s)
        return True

    def _ran(self, runner: Runner, before_s: float, now_s: float, size: int = 1) -> None:
        """Measure a call for `size` messages that has waited for something or has ended a step, and forget them."""
        if not (runner.started_s and self._spec.is_async):
            self._slowest_s = max(self._slowest_s, (now_s - before_s) / size)
        self.figures.ran(now_s - (runner.started_s if 0 < runner.started_s < inf else before_s))
        runner.finished()

    async def _run_units(self, runner: Runner) -> bool:
        """Run what is ready, in batches or as single messages of plain functions; False when the runner has to end."""
        ready, context = self._ready, copy_context()
        while ready:
            runner.in_hand = unit = [ready.popleft() for _ in range(min(self._unit, len(ready)))]
            size, before_s = len(unit), monotonic()
            try:
                await self._call(unit if self._spec.batch else unit[0])
                self._emits.done(runner, unit)
            except HeldBackError:
                self._submitted -= size  # the worker stops in a pause: they stay pending
                runner.finished()
                continue
            except BaseException as error:
                if not self._failed(runner, error):
                    return False
            now_s = monotonic()
            self._ran(runner, before_s, now_s, size)
            if copy_context() != context:
                return False
            if now_s > runner.step_ends_s and ready:  # else it ends, and notes at once that nothing runs
                await self._yield()
        return True

    async def _yield(self) -> None:
        self._yielding += 1
        try:
            await asyncio.sleep(0)
        finally:
            self._yielding -= 1
            self._advance_soon()

    async def _on_loop(self, argument: Any) -> None:
        result = await self._spec.function(argument)
        if result is not None:
            await self._emits.take(result)

    async def _in_thread(self, argument: Any) -> None:
        runner = current_runner()
        runner.started_s = inf  # its time begins when a thread or process is free
        try:
            result = await self.threads.run(self._spec.function, argument, runner.began)
        except UndecodedError as error:  # some of the batch; the others are done
            await self._emits.take(error.result)
            raise
        if result is not None:
            await self._emits.take(result)

    def _failed(self, runner: Runner, error: BaseException) -> bool:
        """Settle what is in hand by what its handler raised; False when the runner has to end. Raises when aborting."""
        if self._aborting:
            raise error
        if runner.timed_out and isinstance(error, asyncio.CancelledError):
            error = HandlerTimeoutError(f"not done within timeout_s = {self._spec.options.timeout_s:g}")
        if self._spec.batch and self._settled_unreadable(runner, error):
            return True
        results: Iterable[tuple[Message, BaseException | None]]
        results = batch_results(runner.messages, error) if self._spec.batch else [(runner.messages[0], error)]
        done = []
        for message, own_error in results:
            if own_error is None:
                done.append(message)
            else:
                self._failures.failed(message, self._failures.decode_error(message) or own_error)
        self._emits.done(runner, done)
        if isinstance(error, GeneratorExit):  # a coroutine that is being closed may await nothing more
            runner.finished()
            return False
        return True

    def _settled_unreadable(self, runner: Runner, error: BaseException) -> bool:
        """Give up the messages that have no text, if the batch failed at one, and run the others again."""
        unreadable_ones = unreadable(runner.messages, error)
        for message, own_error in unreadable_ones:
            self._failures.failed(message, own_error)
        if unreadable_ones:
            runner.emits = []
            given_up = {message.entry for message, _ in unreadable_ones}
            others = [message for message in runner.messages if message.entry not in given_up]
            (self._held if self._paused else self._ready).extendleft(reversed(others))
        return bool(unreadable_ones)

    def step_ended(self, runner: Runner) -> None:
        """Have done messages acked, and another runner go on when this one's message waits."""
        for source in self._sources:
            if source.done:
                self._settler.wake()
                break
        if runner.in_hand is None:
            self._messages_wait = False
            return
        self._messages_wait = True
        if self._ready:
            self._advance_soon()
        else:
            self._control.notify()
        if self._time_limit.timer is None:
            self._time_limit.arm()

    def _advance_soon(self) -> None:
        if not self._advance_due:
            self._advance_due = True
            self._loop.call_soon(self._advance)

    def _advance(self, at_once: bool = False) -> None:
        self._advance_due = False
        if self._yielding:
            return
        wanted = len(self._ready) if self._messages_wait else min(1, len(self._ready))
        runners_max = self._lacks.reduced(self._runners_max)
        for _ in range(min(-(-wanted // self._unit), runners_max - len(self._active))):
            if self._ready:
                self._activate(at_once)

    def _activate(self, at_once: bool) -> None:
        while self._idle:
            runner = self._idle.pop()
            if runner.task.done():  # a handler has cancelled it from outside
                continue
            self._active.add(runner)
            runner.idle.wake(at_once=at_once)
            return
        runner = Runner(self)
        self._active.add(runner)
        runner.task = runner.context(self._context).run(self._loop.create_task, runner.start(self._run(runner)))
