"""Standard streams that never make a process wait or fail, whatever is at their other end.

1. A descriptor may be a pipe that nobody reads, a terminal that is stopped or gone, a full disk, or closed. What can't
   be written at once is dropped and counted; the next line that can be written says how many were lost.
2. The flags of a descriptor belong to every process that shares it, so a pipe or terminal is opened again to be
   non-blocking here alone.
3. Text is written as UTF-8, also where the locale can't encode it.
"""

import contextlib
import fcntl
import io
import os
import select
import stat
import sys
from collections.abc import Callable
from typing import Any

from supervisor.errors import SupervisorError

STDOUT, STDERR = 1, 2
#: A pipe takes this much in one piece, and poll tells when it has room for it (POSIX: PIPE_BUF).
PIECE_BYTES = 4096
NEWLINE = ord("\n")
#: How long a terminal that shows a burst of lines may take before a line is dropped.
TERMINAL_WAIT_MS = 20
#: How long a child waits for the arbiter, which reads all the time, unless it is stopped or loads new code.
ARBITER_WAIT_MS = 100


def open_closed() -> None:
    """Open /dev/null in place of each standard descriptor that is closed (`2>&-`).

    The next file or socket would get its number, and whatever is printed would be written into that.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(fd, True)
    os.close(fd)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - until the end


def dropped_note(lines: int) -> bytes:
    """Return the line that stands for lines that were dropped."""
    return f"({lines} lines before this one were dropped, since nothing was reading)\n".encode()


class Output:
    """Writes lines to a descriptor without waiting."""

    def __init__(self, fd: int, wait_ms: int = 0) -> None:
        """Open the file behind `fd` again, or duplicate `fd` where that is not possible.

        Before the first line is dropped, wait for `wait_ms`.
        """
        #: Own descriptor: `fd` itself may get another file.
        self.fd = _reopened(fd)
        self.dropped = 0
        self._is_cut = False
        mode = _mode(self.fd)
        self._send = _sender(self.fd) if stat.S_ISSOCK(mode) else None
        self._wait_ms = wait_ms or (TERMINAL_WAIT_MS if stat.S_ISCHR(mode) else 0)

    def write(self, data: bytes) -> bool:
        """Write one or more lines; return False if some were dropped."""
        if self.dropped:
            data = (b"\n" if self._is_cut else b"") + data
            data += dropped_note(self.dropped) if data.endswith(b"\n") else b""
        done = 0
        while done < len(data):
            end = done + PIECE_BYTES
            if end < len(data):
                end = data.rfind(b"\n", done, end) + 1 or end
            try:
                done += self.send(data[done:end])
            except OSError:  # nobody reads, or the reader is gone, or its disk is full
                written = False
            else:
                written = done >= min(end, len(data))
            if not written:
                self.dropped += max(1, data.count(b"\n", done))
                self._is_cut = data[done - 1] != NEWLINE if done else self._is_cut
                return False
        self.dropped, self._is_cut = 0, False
        return True

    def send(self, piece: bytes) -> int:
        """Write at most `PIECE_BYTES` and return how many were taken. Raises BlockingIOError and other OSErrors."""
        if self._send is not None:
            return self._send(piece)
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(0 if self.dropped else self._wait_ms):
            raise BlockingIOError
        return os.write(self.fd, piece)


class _Raw(io.RawIOBase):
    """The raw file below a text stream, as `Output` writes it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._output: Output | None = None
        self._own_pid = os.getpid()
        self._pid = 0

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._pid != os.getpid() or self._output is None:  # a fork may have given the descriptor another file
            self._pid = os.getpid()
            self._output = Output(self._fd, ARBITER_WAIT_MS if self._pid != self._own_pid else 0)
        self._output.write(bytes(data))
        return len(data)


class _Buffer(io.BufferedWriter):
    """A buffer that stays open: `with sys.stdout.buffer as file` would end the output of all other handlers."""

    def close(self) -> None:
        self.flush()


class _Text(io.TextIOWrapper):
    """A text stream that stays open, and that writes whatever it is given: nobody may set `errors` to "strict"."""

    def close(self) -> None:
        self.flush()

    def reconfigure(self, *, encoding: str | None = None, errors: str | None = None, **options: Any) -> None:
        super().reconfigure(**options)


def replace_text_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams that never wait, never fail, and write UTF-8.

    Modules that are imported later may keep them, as `logging.basicConfig` does.
    """
    for name, fd in (("stdout", STDOUT), ("stderr", STDERR)):
        with contextlib.suppress(OSError, ValueError):
            getattr(sys, name).flush()
        raw: Any = _Raw(fd)
        stream = _Text(_Buffer(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


class OutputError(SupervisorError):
    """A command's stdout can't be written. It is no OSError, which would be taken for a fault of Redis or a file."""


class _Reporting(io.FileIO):
    """A command's stdout."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except (BrokenPipeError, BlockingIOError):
            raise
        except OSError as error:
            raise OutputError(f"stdout can't be written: {error.strerror}") from None


class _Silent(io.FileIO):
    """A command's stderr: what it does and its exit code do not depend on whether it can talk."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)


def guard_text_streams() -> None:
    """Have a command's streams escape what they can't encode, report a stdout that fails, and ignore such a stderr."""
    kinds: dict[str, type[io.FileIO]] = {"stdout": _Reporting, "stderr": _Silent}
    for name, kind in kinds.items():
        old = getattr(sys, name)
        buffer = getattr(old, "buffer", None)
        raw = getattr(buffer, "raw", buffer)  # the buffer is missing with PYTHONUNBUFFERED
        if type(raw) is not io.FileIO:  # a test has replaced it, or it is guarded already
            continue
        keeps = old.errors if old.errors == "surrogateescape" and old.encoding == "utf-8" else "backslashreplace"
        guarded = io.BufferedWriter(kind(raw.fileno(), "w", closefd=False))
        stream = io.TextIOWrapper(guarded, old.encoding, keeps, line_buffering=name == "stderr" or old.line_buffering)
        setattr(sys, name, stream)


def silence_stdout() -> None:
    """Send what is still buffered for stdout to /dev/null, so that nothing fails when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sender(fd: int) -> Callable[[bytes], int]:
    """Return a function that sends to a socket without waiting. systemd gives a service one as its stderr."""
    import socket  # the quick commands need none

    own = socket.socket(fileno=fd)
    return lambda piece: own.send(piece, socket.MSG_DONTWAIT)


def _mode(fd: int) -> int:
    try:
        return os.fstat(fd).st_mode
    except OSError:
        return 0


def _reopened(fd: int) -> int:
    """Return a descriptor above the standard ones for the file behind `fd`, non-blocking where that matters."""
    mode = _mode(fd)
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    if sys.platform == "linux" and (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        with contextlib.suppress(OSError):  # it is another user's, or nobody reads the pipe
            return os.open(f"/proc/self/fd/{fd}", flags)
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STDERR + 1)
    except OSError:  # it is closed
        return os.open(os.devnull, flags)
