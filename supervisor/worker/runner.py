"""A task that runs messages one after another, and the coroutine wrapper that measures its steps.

A step is what runs between two waits. Its beginning and end cost a clock reading; the messages that begin and end
within one step share them.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import weakref
from collections.abc import Coroutine
from contextvars import Context
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from supervisor.context import in_hand
from supervisor.messages import Message

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from supervisor.broker.direct_future import DirectFuture
    from supervisor.core.field_text import Value

    #: The stream and the fields of a message to publish.
    Entry = tuple[str, Mapping[str, Value]]


#: So many messages of a batch are named on a line of the log.
IDS_MAX = 5


class Owner(Protocol):
    """The executor of a runner."""

    #: The longest step before the event loop gets a turn.
    step_max_s: float
    #: How long steps held the event loop, in all.
    busy_s: float

    def step_ended(self, runner: Runner) -> None:
        """Called after each step of the runner."""

    def give_back(self) -> None:
        """Forget the messages that were not started."""


class Runner(Coroutine[Any, Any, None]):
    """A task's coroutine, and the message or batch that it has in hand."""

    __slots__ = ("_coroutine", "_owner", "emits", "idle", "in_hand", "started_s", "step_ends_s", "task", "timed_out")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
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

    def start(self, coroutine: Coroutine[Any, Any, None]) -> Runner:
        """Wrap `coroutine`, and return the coroutine to make a task of."""
        self._coroutine = coroutine
        return self

    def context(self, base: Context) -> Context:
        """Return a copy of `base` in which `message_fields` finds this runner."""
        context = base.copy()
        context.run(in_hand.set, self)
        return context

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
        self.step_ends_s = began_s + self._owner.step_max_s
        return began_s

    def _end_step(self, began_s: float) -> None:
        if _Process.is_copy:  # a child that a handler forked must not go on as the worker's twin
            os._exit(1)
        if self.in_hand is not None and not self.started_s:
            self.started_s = began_s
        self._owner.busy_s += monotonic() - began_s
        self._owner.step_ended(self)


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


class _Process:
    """Whether this process is a copy of the worker that a handler has forked, and which executors it had."""

    is_copy = False
    #: This process is a worker, with signal handlers of its own; not an app that has consumers.
    is_worker = False
    #: Per thread that forks: the signals that it had blocked before.
    masks: ClassVar[dict[int, set[int]]] = {}
    owners: ClassVar[weakref.WeakSet[Owner]] = weakref.WeakSet()


def register(owner: Owner) -> None:
    """Have `owner` start nothing in a child that a handler forks."""
    _Process.owners.add(owner)


def begin_process() -> None:
    """Note that this process is the worker itself."""
    _Process.is_copy, _Process.is_worker = False, True


def _before_fork() -> None:
    """Block signals: one that reached the child before it has handlers of its own would be the worker's."""
    if _Process.is_worker:
        _Process.masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _after_fork() -> None:
    mask = _Process.masks.pop(get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    _Process.is_copy = True
    for owner in list(_Process.owners):
        owner.give_back()
    if _Process.is_worker:
        _Process.is_worker = False
        _restore_signals()
    _after_fork()


def _restore_signals() -> None:
    """Give a child that a handler forked Python's own handlers: a signal to it must reach nobody else.

    The worker's loop reads the signals of all that share its wakeup descriptor, and its handlers do nothing at once.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.unregister(signal.SIGUSR2)
    faulthandler.disable()  # its file is the worker's


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
