"""Creates child processes: forked ones that use the loaded modules, and ones that exec a command.

1. Nothing is forked while there is a second thread or a socket that is not the arbiter's.
2. The child's descriptors, signals, process group, stdin and random state are reset before its body runs.
3. It dies with the arbiter, and it ends with `os._exit`, because the arbiter's exit handlers are not its own.
"""

import contextlib
import ctypes
import faulthandler
import gc
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from supervisor.arbiter.fork_hazards import (
    DEVICE,
    LOOP,
    descriptors,
    hazards_among,
    standard_streams,
    thread_count,
    thread_names,
)
from supervisor.errors import EXIT_FAILED, SupervisorError

#: linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
#: Makes the kernel kill children before the arbiter when memory runs out.
OOM_SCORE = 300
NAME_BYTES_MAX = 15
EXIT_NO_COMMAND = 127

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class ForkUnsafeError(SupervisorError):
    """A thread or a socket exists that would be broken in a forked child."""


def become_subreaper() -> None:
    """Make this process the parent of orphaned grandchildren, so that it can reap them."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def check_safe(own_sockets: Iterable[int] = ()) -> None:
    """Raise ForkUnsafeError if a fork now would break something in the child."""
    threads = thread_count()
    if threads > 1:
        raise ForkUnsafeError(
            f"{threads} threads run before the workers are forked ({thread_names()}); a fork keeps only one of them and"
            " the locks of all: start threads in handlers, not while a module is imported"
        )
    foreign = _foreign_sockets(own_sockets)
    if foreign:
        raise ForkUnsafeError(
            f"a socket is open before the workers are forked (descriptor {foreign[0]}); all workers would share"
            " this connection: connect in handlers, not while a module is imported"
        )


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What becomes of the arbiter's descriptors in a child."""

    #: Gets the stacks on SIGUSR2, or if the child crashes in C code.
    stacks: int
    #: The child closes these.
    close: Sequence[int]
    #: The arbiter's own sockets, which do not make a fork unsafe.
    sockets: Sequence[int] = ()
    #: What the child gets as stdout and stderr; None: the arbiter's.
    outputs: tuple[int, int] | None = None


def _foreign_sockets(own: Iterable[int]) -> list[int]:
    fds = descriptors()
    known = {*own, *standard_streams(fds)}
    return [fd for fd, target in fds.items() if target.startswith("socket:") and fd not in known]


def check_no_event_loop() -> None:
    """Raise ForkUnsafeError for an event loop of the handlers; called before the arbiter has one itself."""
    fds = descriptors()
    known = standard_streams(fds)
    for _, hazard in hazards_among(fds, known):
        if hazard.kind in (LOOP, DEVICE):
            raise ForkUnsafeError(f"{hazard.detail} is open before the workers are forked")


def own_command() -> list[str]:
    """Return the command line of this process."""
    return [sys.executable, *sys.orig_argv[1:]]


def fork_child(body: Callable[[], int], *, name: str, fds: Descriptors) -> int:
    """Fork a child that runs `body` and exits with what it returns; return its pid.

    It leads its own process group. Raises OSError and ForkUnsafeError.
    """
    check_safe(fds.sockets)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # Until the child has its own signal handlers, a signal would run the arbiter's.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _run_child(body, name, fds, parent)
        # The child does it too: whichever side runs first needs it done.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def exec_command(arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Exec another program; the last step in a forked child."""
    try:
        os.execve(arguments[0], list(arguments), dict(environment))
    except OSError as error:
        _write_stderr(f"{arguments[0]}: {error.strerror}\n")
    os._exit(EXIT_NO_COMMAND)


def _run_child(body: Callable[[], int], name: str, fds: Descriptors, parent: int) -> NoReturn:
    code = EXIT_FAILED
    try:
        signal.set_wakeup_fd(-1)
        _reset_process(name, fds, parent)
        code = body()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else EXIT_FAILED
    except BaseException:
        _write_stderr(traceback.format_exc())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _reset_process(name: str, fds: Descriptors, parent: int) -> None:
    kept = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()  # nohup(1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP} - kept:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    # Ctrl-C reaches the terminal's whole process group, but only the arbiter acts on it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # A process group of its own is in the terminal's background: with `stty tostop`, a line of the log would stop it.
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    for source, target in zip(fds.outputs or (), (1, 2), strict=False):
        os.dup2(source, target)
    for fd in fds.close:
        if fd != fds.stacks:
            with contextlib.suppress(OSError):
                os.close(fd)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before PDEATHSIG was set
        os._exit(EXIT_FAILED)
    os.setpgid(0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    _prctl(PR_SET_NAME, name.encode()[:NAME_BYTES_MAX])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    faulthandler.enable(file=fds.stacks)
    faulthandler.register(signal.SIGUSR2, file=fds.stacks, all_threads=True, chain=False)
    random.seed()
    gc.enable()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _prctl(option: int, value: int | bytes) -> None:
    if _libc is not None:
        _libc.prctl(option, value if isinstance(value, bytes) else ctypes.c_ulong(value), 0, 0, 0)


def _write_stderr(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="replace"))
