"""Runs deliveries through one handler, at most `concurrency` at a time.

1. Runners are tasks that outlive a message: one after another is awaited in the same task, and a
   message that never waits costs no Task. Only when a runner's message does wait, another runner
   goes on with what is ready.
2. So a handler has a real `asyncio.current_task()`, which timeouts and task groups need.
3. It measures and limits; how a message is settled is its owner's business.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import copy_context
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from supervisor.worker.batch import verdicts
from supervisor.worker.calls import Calls
from supervisor.worker.meter import Meter, Timed
from supervisor.worker.runner import HandlerTimeoutError, Runner, Settle

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from concurrent.futures import Executor as Threads

    from supervisor.handling.load import HandlerSpec
    from supervisor.worker.delivery import Delivery

#: After a stretch of this length without a wait, the loop gets a turn: for beats, acks and retries.
STRETCH_S_MAX = 0.01
_WATCH_S_MAX = 0.5
#: A handler that was cancelled at its time limit has so long to end.
END_S = 5.0


class Executor:
    """The running and the ready deliveries of one handler."""

    def __init__(self, spec: HandlerSpec, settle: Settle, threads: Threads, threads_max: int) -> None:
        self._spec = spec
        self._settle = settle
        self._loop = asyncio.get_running_loop()
        self.calls = Calls(threads, self._loop)
        limit = spec.options.concurrency if spec.is_async else min(spec.options.concurrency, threads_max)
        self._unit = spec.options.batch_size if spec.batch else 1
        self._runners_max = max(1, limit // self._unit)
        self.limit = max(limit, self._unit)
        self._ready: deque[Delivery] = deque()
        self._active: set[Runner] = set()
        self._idle: list[Runner] = []
        self._yielding = 0
        self._kick_due = False
        self._watch: asyncio.TimerHandle | None = None
        self._aborting = False
        self._context = copy_context()
        self.meter = Meter()

    @property
    def in_hand(self) -> int:
        """How many deliveries run or are ready to."""
        return len(self._ready) + self.running

    @property
    def running(self) -> int:
        """How many deliveries run."""
        return sum(len(runner.current) for runner in self._active)

    @property
    def unstarted(self) -> int:
        """How many deliveries wait for their turn."""
        return len(self._ready)

    @property
    def room(self) -> int:
        """How many more deliveries could be run at once."""
        return self.limit - self.in_hand

    @property
    def due_s(self) -> float:
        """When what runs longest must be over, by `time.monotonic`; beyond that it can't be ended from within."""
        began = [runner.started_s for runner in self._active if runner.current]
        return min(*began, self.calls.oldest_s, inf) + self._spec.options.timeout_s + END_S

    def deliveries(self, *, running: bool = True) -> Iterable[Delivery]:
        """Those in hand; without `running` those that wait for their turn."""
        yield from self._ready
        for runner in self._active if running else ():
            yield from runner.current

    def submit(self, deliveries: Iterable[Delivery]) -> None:
        """Run these, in order, as soon as there is room."""
        self._ready.extend(deliveries)
        self._advance()

    def give_back(self) -> None:
        """Start nothing more of what is ready; it stays pending."""
        self._ready.clear()

    async def abort(self) -> None:
        """Cancel what runs; it stays pending."""
        self._aborting = True
        self._ready.clear()
        tasks = [runner.task for runner in (*self._active, *self._idle)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._watch is not None:
            self._watch.cancel()

    # A stretch: one runner goes through what is ready until a message waits.

    async def _run(self, runner: Runner) -> None:
        while True:
            self._kick_soon()
            if self._unit == 1 and self._spec.is_async:
                await self._run_singles(runner)
            else:
                await self._run_units(runner)
            self._active.discard(runner)
            self._settle.progress()
            if copy_context() != self._context:
                return  # the handler left context variables behind: the next message must not see them
            runner.wake = self._loop.create_future()
            self._idle.append(runner)
            await runner.wake

    async def _run_singles(self, runner: Runner) -> None:
        """The hot path: about a microsecond a message on top of the handler."""
        spec, ready, meter, done = self._spec, self._ready, self.meter, self._settle.done
        function, decode, stream, group = spec.function, spec.decode, spec.stream, spec.group
        now_s = monotonic()
        while ready:
            delivery = ready.popleft()
            if not ready:
                self._kick_soon()  # should this one wait, there is room to read more
            runner.current = (delivery,)
            runner.started_s = now_s
            steps = meter.steps
            try:
                await function(decode(delivery.message(stream, group)))
            except BaseException as error:
                if not self._went_wrong(runner, error):
                    return
            else:
                done(delivery)
            runner.finish()
            now_s = monotonic()
            meter.ran += 1
            if meter.steps == steps and now_s - runner.started_s > meter.slowest_s:
                meter.slowest_s = now_s - runner.started_s
            if now_s - meter.step_began_s > STRETCH_S_MAX:
                await self._yield()
                now_s = monotonic()

    async def _run_units(self, runner: Runner) -> None:
        """Batches, and single messages of plain functions."""
        meter, ready = self.meter, self._ready
        while ready:
            unit = [ready.popleft() for _ in range(min(self._unit, len(ready)))]
            if not ready:
                self._kick_soon()
            ran, steps = len(unit), meter.steps
            runner.current = unit
            runner.started_s = monotonic()
            try:
                await self._call(runner, unit)
            except BaseException as error:
                if not self._went_wrong(runner, error):
                    return
            runner.finish()
            meter.ran += ran
            held_s = monotonic() - runner.started_s
            if meter.steps == steps or not self._spec.is_async:
                meter.slowest_s = max(meter.slowest_s, held_s / ran)
            if monotonic() - meter.step_began_s > STRETCH_S_MAX:
                await self._yield()

    async def _yield(self) -> None:
        self._yielding += 1
        try:
            await asyncio.sleep(0)
        finally:
            self._yielding -= 1
        self._kick_soon()

    async def _call(self, runner: Runner, unit: list[Delivery]) -> None:
        spec = self._spec
        if spec.batch:
            await self._call_batch(runner, unit)
            return
        argument = spec.decode(unit[0].message(spec.stream, spec.group))
        if spec.is_async:
            await spec.function(argument)
        else:
            await self._in_thread(runner, argument)
        self._settle.done(unit[0])

    async def _call_batch(self, runner: Runner, unit: list[Delivery]) -> None:
        spec = self._spec
        fitting = []
        arguments = []
        for delivery in unit:
            try:
                arguments.append(spec.decode(delivery.message(spec.stream, spec.group)))
            except Exception as error:
                self._settle.failed(delivery, error)
            else:
                fitting.append(delivery)
        unit[:] = fitting
        if not arguments:
            return
        if spec.is_async:
            await spec.function(arguments)
        else:
            await self._in_thread(runner, arguments)
        for delivery in unit:
            self._settle.done(delivery)

    async def _in_thread(self, runner: Runner, argument: Any) -> None:
        runner.started_s = inf  # its time begins when a thread is free
        await self.calls.run(self._spec.function, argument, runner)

    def _went_wrong(self, runner: Runner, error: BaseException) -> bool:
        """Settle what is in hand by what its handler raised; False when the runner has to end. Raises at the end."""
        if self._aborting:
            raise error
        if runner.timed_out and isinstance(error, asyncio.CancelledError):
            error = HandlerTimeoutError(f"not done within timeout_s = {self._spec.options.timeout_s:g}")
        self._raised(runner.current, error)
        if isinstance(error, GeneratorExit):  # a coroutine that was told to close may await nothing more
            runner.finish()
            return False
        return True

    def _raised(self, unit: Sequence[Delivery], error: BaseException) -> None:
        for delivery, own in verdicts(unit, error) if self._spec.batch else ((delivery, error) for delivery in unit):
            if own is None:
                self._settle.done(delivery)
            else:
                self._settle.failed(delivery, own)

    # Who runs: at most `_limit` deliveries in runners, one more runner whenever a message waits.

    def _advance(self) -> None:
        if self._ready and not self._yielding and len(self._active) < self._runners_max:
            self._activate()

    def _activate(self) -> None:
        while self._idle:
            runner = self._idle.pop()
            if runner.task.done():  # somebody has cancelled it from outside
                continue
            self._active.add(runner)
            if runner.wake is not None and not runner.wake.done():
                runner.wake.set_result(None)
            return
        runner = Runner()
        self._active.add(runner)
        runner.task = self._context.copy().run(self._loop.create_task, Timed(self._guard(runner), self.meter))

    async def _guard(self, runner: Runner) -> None:
        try:
            await self._run(runner)
        except (asyncio.CancelledError, GeneratorExit):
            raise  # at the end, or a handler has cancelled the task that it once ran in
        except BaseException as error:
            self._settle.broke(error)
        finally:
            self._active.discard(runner)
            if self._ready and not self._aborting:
                self._kick_soon()

    def _kick_soon(self) -> None:
        if not self._kick_due:
            self._kick_due = True
            self._loop.call_soon(self._kick)

    def _kick(self) -> None:
        self._kick_due = False
        self._advance()
        if not self._ready:
            self._settle.progress()
        if self._watch is None and self._active:
            self._arm()

    def _arm(self) -> None:
        interval_s = min(_WATCH_S_MAX, self._spec.options.timeout_s / 10)
        self._watch = self._loop.call_later(interval_s, self._check_times)

    def _check_times(self) -> None:
        self._watch = None
        overdue_s = monotonic() - self._spec.options.timeout_s
        for runner in self._active:
            if runner.current and not runner.timed_out and runner.started_s < overdue_s:
                runner.timed_out = True
                runner.task.cancel()
        if self._active:
            self._arm()
