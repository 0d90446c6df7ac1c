"""What happens in a child that a handler forks: it starts no message, and it ends when its step does."""

from __future__ import annotations

import faulthandler
import os
import signal
import weakref
from threading import get_ident
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import MutableSet


class Owner(Protocol):
    """An executor."""

    def give_back(self) -> None:
        """Forget the messages that were not started."""


class ThisProcess:
    """Whether this process is a copy of the worker that a handler has forked, and which executors it had."""

    is_copy = False
    #: This process is a worker, with signal handlers of its own; not an app that has consumers.
    is_worker = False
    #: Per thread that forks: the signals that it had blocked before.
    masks: ClassVar[dict[int, set[int]]] = {}
    #: They start nothing in a copy.
    owners: ClassVar[MutableSet[Owner]] = weakref.WeakSet()


def begin_process() -> None:
    """Note that this process is the worker itself."""
    ThisProcess.is_copy, ThisProcess.is_worker = False, True


def _before_fork() -> None:
    """Block signals: one that reached the child before it has handlers of its own would be the worker's."""
    if ThisProcess.is_worker:
        ThisProcess.masks[get_ident()] = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _after_fork() -> None:
    mask = ThisProcess.masks.pop(get_ident(), None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork_in_child() -> None:
    ThisProcess.is_copy = True
    for owner in list(ThisProcess.owners):
        owner.give_back()
    if ThisProcess.is_worker:
        ThisProcess.is_worker = False
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
