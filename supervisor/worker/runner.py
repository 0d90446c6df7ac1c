"""The tasks in which the messages of a handler run. Each runs messages one after another.

1. A runner outlives a message, so a message that never waits costs no Task. When a runner's message waits, another
   runner goes on with what is ready.
2. So a handler has a real `asyncio.current_task()`, which timeouts and task groups need.
3. A step is what runs between two waits. Its beginning and end cost a clock reading; the messages that begin and end
   within one step share them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextvars import Context, copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any

from supervisor.broker.direct_future import DirectFuture
from supervisor.context import in_hand
from supervisor.core.pace import SLOW_SHARE
from supervisor.messages import Message
from supervisor.shared_figures import QUICK_S
from supervisor.worker.handler_forks import ThisProcess

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Mapping, Sequence

    from supervisor.core.field_text import Value
    from supervisor.core.options import Options
    from supervisor.worker.resources import Resources
    from supervisor.worker.source import Source

    #: The stream and the fields of a message to publish.
    Entry = tuple[str, Mapping[str, Value]]

#: After a step of this length the event loop gets a turn. Messages that end within one are counted as quick.
STEP_MAX_S = QUICK_S
#: So many messages of a batch are named on a line of the log.
IDS_MAX = 5
_TIME_LIMIT_LOOK_S_MAX = 0.5


class Runner(Coroutine[Any, Any, None]):
    """A task's coroutine, which measures its steps, and the message or batch that it has in hand."""

    __slots__ = ("_coroutine", "_runners", "emits", "idle", "in_hand", "started_s", "step_ends_s", "task", "timed_out")

    def __init__(self, runners: Runners) -> None:
        self._runners = runners
        self._coroutine: Coroutine[Any, Any, None]
        self.task: asyncio.Task[None]
        #: What the runner waits for while it has nothing to do.
        self.idle: DirectFuture
        self.in_hand: Message | Sequence[Message] | None = None
        #: What the handler returned to be published with the ack: streams and fields.
        self.emits: list[Entry] = []
        #: When the message in hand began to run, once it has waited for something; 0 before, infinity while it waits
        #: for a thread.
        self.started_s = 0.0
        #: When the present step should give the event loop a turn.
        self.step_ends_s = 0.0
        #: The task was cancelled because its message ran out of time.
        self.timed_out = False

    def start(self, coroutine: Coroutine[Any, Any, None], base: Context, loop: asyncio.AbstractEventLoop) -> None:
        """Run `coroutine` as a task, in a copy of `base` in which this runner is found."""
        self._coroutine = coroutine
        context = base.copy()
        context.run(in_hand.set, self)
        self.task = context.run(loop.create_task, self)

    @property
    def messages(self) -> Sequence[Message]:
        """The messages in hand."""
        if self.in_hand is None:
            return ()
        return (self.in_hand,) if isinstance(self.in_hand, Message) else self.in_hand

    def began(self, now_s: float) -> None:
        """Note when the message in hand began to run."""
        self.started_s = now_s

    def finished(self) -> None:
        """Forget the message in hand, and that it was cancelled: the next one must not be taken for cancelled."""
        self.in_hand = None
        self.started_s = 0.0
        if self.timed_out:
            self.timed_out = False
            while self.task.cancelling():
                self.task.uncancel()

    def send(self, value: Any, /) -> Any:
        """Run a step."""
        began_s = self._begin_step()
        try:
            return self._coroutine.send(value)
        finally:
            self._end_step(began_s)

    def throw(self, *error: Any) -> Any:
        """Run a step that begins with an exception."""
        began_s = self._begin_step()
        try:
            return self._coroutine.throw(*error)
        finally:
            self._end_step(began_s)

    def close(self) -> None:
        """End the coroutine."""
        self._coroutine.close()

    def __await__(self) -> Any:
        """Complete the interface of a coroutine; a task uses only `send` and `throw`."""
        return self._coroutine.__await__()

    def _begin_step(self) -> float:
        began_s = monotonic()
        self.step_ends_s = began_s + self._runners.step_max_s
        return began_s

    def _end_step(self, began_s: float) -> None:
        if ThisProcess.is_copy:  # a child that a handler forked must not go on as the worker's twin
            os._exit(1)
        if self.in_hand is not None and not self.started_s:
            self.started_s = began_s
        self._runners.busy_s += monotonic() - began_s
        self._runners.step_ended(self)


class Runners:
    """The runners of one handler: as many as its messages need, up to a limit."""

    def __init__(
        self,
        run: Callable[[Runner], Coroutine[Any, Any, None]],
        ready: deque[Message],
        options: Options,
        resources: Resources,
        sources: Sequence[Source],
        *,
        limit: int,
        unit: int,
    ) -> None:
        """Have at most `limit` runners, each with `run` for its coroutine, which takes `unit` messages from `ready`."""
        self._run = run
        self._ready = ready
        self._timeout_s = options.timeout_s
        self._sources = sources
        self._settler = resources.settler
        self._control = resources.control
        self._lacks = resources.lacks
        self._limit = limit
        self._unit = unit
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        #: Those that run messages, and those that wait for some.
        self.active: set[Runner] = set()
        self.idle: list[Runner] = []
        #: Messages of this handler wait for something: what is ready needs a runner each.
        self._messages_wait = False
        self._yielding = 0
        self._advance_due = False
        self._timer: asyncio.TimerHandle | None = None
        #: The longest step before the event loop gets a turn.
        self.step_max_s = min(STEP_MAX_S, options.hold_ms / 1000 * SLOW_SHARE)
        #: How long steps held the event loop, in all.
        self.busy_s = 0.0

    def advance(self, at_once: bool = False) -> None:
        """Have runners take what is ready; with `at_once` before returning, until the first message waits."""
        self._advance_due = False
        if self._yielding:
            return
        wanted = len(self._ready) if self._messages_wait else min(1, len(self._ready))
        limit = self._lacks.reduced(self._limit)
        for _ in range(min(-(-wanted // self._unit), limit - len(self.active))):
            if self._ready:
                self._activate(at_once)

    def advance_soon(self) -> None:
        """Have runners take what is ready at the next iteration of the event loop."""
        if not self._advance_due:
            self._advance_due = True
            self._loop.call_soon(self.advance)

    async def give_turn(self) -> None:
        """Give the event loop a turn, in which no other runner begins."""
        self._yielding += 1
        try:
            await asyncio.sleep(0)
        finally:
            self._yielding -= 1
            self.advance_soon()

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
            self.advance_soon()
        else:
            self._control.notify()
        if self._timer is None:
            self._watch_time_limit()

    def cancel(self) -> list[asyncio.Task[None]]:
        """Cancel all; return their tasks."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [runner.task for runner in (*self.active, *self.idle)]
        for task in tasks:
            task.cancel()
        return tasks

    def _activate(self, at_once: bool) -> None:
        while self.idle:
            runner = self.idle.pop()
            if runner.task.done():  # a handler has cancelled it from outside
                continue
            self.active.add(runner)
            runner.idle.wake(at_once=at_once)
            return
        runner = Runner(self)
        self.active.add(runner)
        runner.start(self._run(runner), self._context, self._loop)

    def _watch_time_limit(self) -> None:
        """Look at the runners soon, and again as long as any is active."""
        self._timer = self._loop.call_later(min(_TIME_LIMIT_LOOK_S_MAX, self._timeout_s / 10), self._end_overdue)

    def _end_overdue(self) -> None:
        """Cancel runners whose message has run for longer than the handler may take."""
        self._timer = None
        overdue_s = monotonic() - self._timeout_s
        for runner in self.active:
            if 0 < runner.started_s < overdue_s and not runner.timed_out:
                runner.timed_out = True
                runner.task.cancel()
        if self.active:
            self._watch_time_limit()


def current_runner() -> Runner:
    """Return the runner that the caller runs in, also in tasks that a handler started."""
    runner = in_hand.get()
    if not isinstance(runner, Runner):
        raise RuntimeError("no handler runs here")
    return runner


def message_fields() -> dict[str, Any]:
    """Return what names the message that the caller handles, for a line of the log."""
    runner = in_hand.get()
    messages = runner.messages if runner else ()
    if not messages:
        return {}
    first, *others = messages[:IDS_MAX]
    if not others:
        return {"stream": first.stream, "group": first.group, "id": first.id, "attempt": first.deliveries}
    return {"stream": first.stream, "group": first.group, "ids": [message.id for message in (first, *others)]}
