"""The keys and the job control of `supervisor top`: single keys, Ctrl-Z and `fg`."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from supervisor.cli.screen import commands_of

if TYPE_CHECKING:
    from types import TracebackType

#: What the signals do. They are read like keys, so that none of them comes in the middle of a drawing.
_SIGNALS = {signal.SIGTSTP: "stop", signal.SIGCONT: "draw"}


class Keyboard:
    """Reads keys without waiting for Enter. Outside of `with`, and while stopped, the terminal is as it was."""

    def __init__(self) -> None:
        self._stdin = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._before = None if self._stdin is None else termios.tcgetattr(self._stdin)
        self._signalled, self._written = os.pipe()
        os.set_blocking(self._signalled, False)
        os.set_blocking(self._written, False)

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:  # a shell without job control ignores SIGTSTP
                signal.signal(number, _noted)
                signal.siginterrupt(number, False)  # `fg` after `bg` comes in the midst of a change of the terminal
        signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        self._read_single_keys()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(-1)
        self._restore()

    def wait(self, ready_fd: int) -> list[str]:
        """Wait for keys, signals or a readable descriptor, and return what the keys and signals do."""
        keys = [] if self._stdin is None else [self._stdin]
        readable, _, _ = select.select([ready_fd, self._signalled, *keys], [], [])
        commands = []
        if self._signalled in readable:
            numbers = set(os.read(self._signalled, 1024))
            commands += [command for number, command in _SIGNALS.items() if number in numbers]
        if self._stdin in readable:
            try:
                typed = os.read(self._stdin, 1024)
            except OSError:  # the terminal is gone
                typed = b""
            commands += commands_of(typed.decode(errors="replace")) if typed else ["quit"]
        return commands

    def stop(self) -> None:
        """Stop the process as Ctrl-Z does. Returns when the shell lets it go on."""
        self._restore()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, _noted)
        signal.siginterrupt(signal.SIGTSTP, False)
        self._read_single_keys()

    def _read_single_keys(self) -> None:
        if self._stdin is not None:
            tty.setcbreak(self._stdin)

    def _restore(self) -> None:
        if self._stdin is not None and self._before is not None:
            with suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._stdin, termios.TCSADRAIN, self._before)


def _noted(_number: int, _frame: object) -> None:
    """Do nothing: `wait` reads the number from the pipe."""
