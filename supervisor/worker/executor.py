"""Runs messages through one handler, at most `concurrency` at a time, and notes what became of each.

A message that is done is noted at its source, where the settler takes it; `Failures` settles what was raised.
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
from supervisor.core.options import PROCESS
from supervisor.errors import HandlerTimeoutError
from supervisor.handling.decode import as_message
from supervisor.handling.middleware import compose
from supervisor.worker.emits import Emits
from supervisor.worker.handler_forks import ThisProcess
from supervisor.worker.process_calls import ProcessCalls, UndecodedError
from supervisor.worker.runner import Runners, current_runner
from supervisor.worker.thread_calls import CANCEL_GRACE_S, HeldBackError, ThreadCalls

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from supervisor.handling.decode import Decoder
    from supervisor.handling.loader import HandlerSpec
    from supervisor.messages import Message
    from supervisor.worker.resources import Resources
    from supervisor.worker.retry_or_dead_letter import Failures
    from supervisor.worker.runner import Runner
    from supervisor.worker.source import Source


class Executor:
    """The ready and the running messages of one handler."""

    def __init__(self, spec: HandlerSpec, resources: Resources, failures: Failures, sources: Sequence[Source]) -> None:
        self._spec = spec
        self._sources = sources
        self.figures = sources[0].figures
        self._failures = failures
        self._control = resources.control
        self._lacks = resources.lacks
        self._bug = resources.bug
        self._ready: deque[Message] = deque()
        #: What waits because the pool is paused or the handler's circuit is open.
        self._held: deque[Message] = deque()
        #: How many more messages may be started; infinity unless the handler fails for everything.
        self._startable = inf
        self._aborting = False
        #: The calls of plain handlers, in threads or processes.
        self.calls, decode, limit = _calls_of(spec, resources, failures)
        self._unit = unit = spec.options.batch_size if spec.batch else 1
        self._limit = max(limit, unit)
        runners_max = max(1, limit // unit)
        self._runners = Runners(self._run, self._ready, spec.options, resources, sources, limit=runners_max, unit=unit)
        self._emits = Emits(resources, self.figures)
        function = self._on_loop if spec.is_async else self._in_thread
        #: Awaited with a message or a batch: middleware, decoding and the handler.
        self._call = compose(spec.middleware, decode, function, batch=spec.batch)
        self._submitted = 0
        self._counted = 0
        self._slowest_s = 0.0
        ThisProcess.owners.add(self)

    # What may run is handed to the runners.

    def submit(self, messages: Sequence[Message], *, at_once: bool = False) -> None:
        """Run these, in order, as soon as there is room; with `at_once` before returning, until the first one waits."""
        self._submitted += len(messages)
        if self._control.paused or self._startable < inf:
            self._held.extend(messages)
            self.hold_and_release()
        else:
            self._ready.extend(messages)
            self._runners.advance(at_once)

    def hold_to(self, run_max: float) -> None:
        """Let at most `run_max` messages run, until the next call."""
        if run_max == 0:
            self._hold()
        self._startable = run_max if run_max == inf else max(0, run_max - self.running - len(self._ready))
        self.hold_and_release()

    def hold_and_release(self) -> None:
        """Start nothing while the worker is paused, or else what may run; what runs goes on."""
        if self._control.paused:
            self._hold()
        while self._held and self._startable > 0 and not self._control.paused:
            self._ready.append(self._held.popleft())
            self._startable -= 1
        self._runners.advance()

    def _hold(self) -> None:
        while self._ready:
            self._held.appendleft(self._ready.pop())

    # A runner takes one message after another, calls the handler and settles.

    async def _run(self, runner: Runner) -> None:
        run_ready = self._run_messages if self._spec.is_async and not self._spec.batch else self._run_units
        try:
            while True:
                goes_on = await run_ready(runner)
                self._ended(runner)
                if not goes_on:
                    return
                runner.idle = DirectFuture()
                self._runners.idle.append(runner)
                await runner.idle
        except (asyncio.CancelledError, GeneratorExit):
            raise  # at the end, or a handler has cancelled the task that it once ran in
        except BaseException as error:
            if not self._aborting and not self._bug.done():
                self._bug.set_exception(error)
        finally:
            self._ended(runner)

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
                await self._runners.give_turn()
                began_s = now_s = monotonic()
            before_s = now_s
        runner.in_hand = None
        self.figures.ran_quickly(quick, before_s - began_s)
        return True

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
                await self._runners.give_turn()
        return True

    async def _on_loop(self, argument: Any) -> None:
        result = await self._spec.function(argument)
        if result is not None:
            await self._emits.take(result)

    async def _in_thread(self, argument: Any) -> None:
        runner = current_runner()
        runner.started_s = inf  # its time begins when a thread or process is free
        try:
            result = await self.calls.run(self._spec.function, argument, runner.began)
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
            (self._held if self._control.paused else self._ready).extendleft(reversed(others))
        return bool(unreadable_ones)

    def _ran(self, runner: Runner, before_s: float, now_s: float, size: int = 1) -> None:
        """Measure a call for `size` messages that has waited for something or has ended a step, and forget them."""
        if not (runner.started_s and self._spec.is_async):
            self._slowest_s = max(self._slowest_s, (now_s - before_s) / size)
        self.figures.ran(now_s - (runner.started_s if 0 < runner.started_s < inf else before_s))
        runner.finished()

    def _ended(self, runner: Runner) -> None:
        """Note that the runner has no message any more, and have the others take what is ready."""
        self._runners.active.discard(runner)
        if not self._aborting:
            self.note_idle()
            self._control.notify()
            if self._ready:
                self._runners.advance_soon()

    def note_idle(self) -> None:
        """Note in shared memory that no message runs: a process that ends now was not ended by one."""
        if not (self._aborting or self.in_hand):
            for source in self._sources:
                source.marks.note_idle()

    # What stops it.

    def give_back(self) -> None:
        """Forget what is ready; it stays pending."""
        self._submitted -= self.unstarted
        self._ready.clear()
        self._held.clear()

    def cancel(self) -> list[asyncio.Task[None]]:
        """Cancel what runs, which stays pending; start and note nothing more. Return the tasks to wait for."""
        self._aborting = True
        self.give_back()
        return self._runners.cancel()

    # What others ask.

    @property
    def in_hand(self) -> int:
        """How many messages run or are ready to."""
        return len(self._ready) + len(self._held) + self.running

    @property
    def running(self) -> int:
        """How many messages run."""
        if self._unit == 1:
            return len(self._runners.active)
        return sum(len(runner.messages) for runner in self._runners.active)

    @property
    def started(self) -> int:
        """How many messages have begun to run and have not ended; threads that were given up count."""
        begun = sum(len(runner.messages) for runner in self._runners.active if runner.started_s != inf)
        return max(begun, self.calls.running)

    @property
    def unstarted(self) -> int:
        """How many messages wait for their turn."""
        return len(self._ready) + len(self._held)

    @property
    def finished(self) -> int:
        """How many messages have run so far; too few while a runner was woken and has not begun."""
        return self._submitted - self.in_hand

    @property
    def limit(self) -> int:
        """How many messages may run at the same time, fewer while the worker lacks something."""
        return max(self._lacks.reduced(self._limit), self._unit)

    @property
    def due_s(self) -> float:
        """When the longest-running message must have ended, by `time.monotonic`; after that only a kill can end it."""
        active = self._runners.active
        if not (active or self.calls.running):
            return inf
        began = [runner.started_s for runner in active if runner.started_s]
        return min(*began, self.calls.oldest_s, inf) + self._spec.options.timeout_s + CANCEL_GRACE_S

    def messages(self) -> Iterator[Message]:
        """Yield the messages in hand."""
        yield from self._ready
        yield from self._held
        for runner in self._runners.active:
            yield from runner.messages

    def measured(self) -> tuple[int, float, float]:
        """Return (messages run, seconds they held the loop, longest hold of one) since the last call."""
        finished, runners = max(self._counted, self.finished), self._runners  # each counts once, though it may fall
        measured = finished - self._counted, runners.busy_s, self._slowest_s
        self._counted, runners.busy_s, self._slowest_s = finished, 0.0, 0.0
        return measured


def _calls_of(
    spec: HandlerSpec, resources: Resources, failures: Failures
) -> tuple[ThreadCalls | ProcessCalls, Decoder, int]:
    """Return what calls a plain handler, the worker's decoder for it, and how many messages may run at a time."""
    concurrency, processes = spec.options.concurrency, resources.processes
    if processes is not None and spec.options.run_in == PROCESS:
        return ProcessCalls(processes, spec), as_message, min(concurrency, processes.size)  # the process decodes
    calls = ThreadCalls(resources.threads, resources.control, spec.options.timeout_s, failures.overstayed)
    return calls, spec.decode, concurrency if spec.is_async else min(concurrency, resources.threads.size)
