"""Makes child processes: forked ones that go on with what is loaded, and ones that exec a command.

1. Nothing is forked while there is a second thread or a socket that is not the arbiter's.
2. The child is cleaned before anything runs in it: descriptors, signals, process group, stdin, random.
3. It dies with the arbiter, and it ends with `os._exit`: the arbiter's exit handlers are not its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import random
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from supervisor.errors import EXIT_FAILED, SupervisorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

#: linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
#: Of all processes of a pool the arbiter shall be the last that the kernel takes for want of memory.
OOM_SCORE = 300
NAME_BYTES_MAX = 15
EXIT_NO_COMMAND = 127

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class ForkUnsafeError(SupervisorError):
    """There is a thread or a socket that would be broken in a forked child."""


def become_subreaper() -> None:
    """Have orphaned grandchildren come to this process, so that nothing is ever left unseen."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def check_safe(own_sockets: Iterable[int] = ()) -> None:
    """Raises ForkUnsafeError when a fork now would break something in the child."""
    threads = _threads()
    if threads > 1:
        names = ", ".join(thread.name for thread in threading.enumerate()[1:]) or "made outside of Python"
        raise ForkUnsafeError(
            f"{threads} threads run before the workers are forked ({names}); a fork keeps only one of them and the"
            " locks of all: start threads inside of handlers, not while a module is imported"
        )
    known = {0, 1, 2, *own_sockets}
    strangers = [fd for fd in _sockets() if fd not in known]
    if strangers:
        raise ForkUnsafeError(
            f"a socket is open before the workers are forked (descriptor {strangers[0]}); all workers would share the"
            " one connection: connect inside of handlers, not while a module is imported"
        )


def fork_child(
    body: Callable[[], int], *, name: str, stack_fd: int, close: Sequence[int], own_sockets: Iterable[int] = ()
) -> int:
    """Fork; the child runs `body` and exits with what it returns. The child's pid.

    It writes its stacks to `stack_fd` when SIGUSR2 asks for them or it crashes in C. `close` are
    descriptors that it must not have. It leads a process group of its own. Raises OSError when the
    system has no process to give, ForkUnsafeError.
    """
    check_safe(own_sockets)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # A signal between fork and the child's own handlers would run the arbiter's.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _run_child(body, name, stack_fd, close, parent)
        # Both sides do it, so that it is done for whoever looks first.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def exec_command(arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """The last thing in a forked child: become another program."""
    try:
        os.execve(arguments[0], list(arguments), dict(environment))
    except OSError as error:
        _say(f"{arguments[0]}: {error.strerror}\n")
    os._exit(EXIT_NO_COMMAND)


def _run_child(body: Callable[[], int], name: str, stack_fd: int, close: Sequence[int], parent: int) -> NoReturn:
    code = EXIT_FAILED
    try:
        signal.set_wakeup_fd(-1)
        _clean(name, stack_fd, close, parent)
        code = body()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else EXIT_FAILED
    except BaseException:
        _say(traceback.format_exc())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _clean(name: str, stack_fd: int, close: Sequence[int], parent: int) -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    # Ctrl-C reaches the whole group of the terminal; the arbiter alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for fd in close:
        if fd != stack_fd:
            with contextlib.suppress(OSError):
                os.close(fd)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be tied to
        os._exit(EXIT_FAILED)
    os.setpgid(0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    _prctl(PR_SET_NAME, name.encode()[:NAME_BYTES_MAX])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    faulthandler.enable(file=stack_fd)
    faulthandler.register(signal.SIGUSR2, file=stack_fd, all_threads=True, chain=False)
    random.seed()
    gc.enable()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _prctl(option: int, value: int | bytes) -> None:
    if _libc is not None:
        _libc.prctl(option, value if isinstance(value, bytes) else ctypes.c_ulong(value), 0, 0, 0)


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def _sockets() -> list[int]:
    found = []
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return []
    for name in names:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.append(int(name))
    return found


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode(errors="replace"))
