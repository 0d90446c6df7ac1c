"""Runs `supervisor` commands in forks of one process that has imported them already.

A command is a process of its own with its own folder, environment, standard streams and exit code, as one that was
started by `python -m supervisor`; only the interpreter's start and the imports, most of its CPU time, are saved.
There is one such process for arbiters (`start`), one for the HTTP service (`api`) and one for all other commands, each
with what these import and nothing else.

As a program (`python -P command_server.py SOCKET KIND`) this file is the process that forks.
"""

import array
import atexit
import contextlib
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, ClassVar, NoReturn

#: The processes that fork, and what each imports.
COMMAND, ARBITER, SERVICE = "command", "arbiter", "service"
KINDS = {"start": ARBITER, "api": SERVICE}
PRELOADED = {
    COMMAND: (
        "redis.asyncio",
        "rich.table",
        "supervisor.arbiter.preload",
        "supervisor.handling.loader",
        "supervisor.http_bind",
        "supervisor.overview",
        "supervisor.settings.load",
        "supervisor.status",
    ),
    ARBITER: (
        "supervisor.cli.start",
        "supervisor.arbiter.bootstrap",
        "supervisor.keeper.keeper",
        "supervisor.keeper.preflight",
        "supervisor.worker.process",
    ),
    SERVICE: ("supervisor.cli.api", "uvicorn.protocols.websockets.auto", "uvloop"),
}
#: Modules of the HTTP service, whose package has no name of its own in a checkout.
PRELOADED_OF_SERVICE = ("app", "http_figures", "http_protocol")
REQUEST_BYTES_MAX = 1 << 20
#: The environment variable that marks all processes of a pool, see tests/support/pool.py.
MARK = "POOL_TEST_MARK"
MARK_LENGTH = 32
#: An interpreter reads these when it starts: a process with others is not forked.
_READ_AT_START = ("PYTHON", "SUPERVISOR_PURE_PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "OTEL_")
_ENVIRONMENT = dict(os.environ)


# In the tests


def can_fork(env: Mapping[str, str]) -> bool:
    """Whether a fork is what an interpreter with this environment would be."""

    def read(variables: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in variables.items() if name.startswith(_READ_AT_START)}

    return read(env) == read(_ENVIRONMENT)


def imports_ms(kind: str = ARBITER) -> float:
    """How long an interpreter needed on this machine until it had imported what commands of that kind need."""
    return _server(kind)[1]


class Forked:
    """A command in a fork, with what tests use of `subprocess.Popen`."""

    #: CPU time of all that have ended, and of the children that they waited for.
    used_s: ClassVar[float] = 0.0

    def __init__(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        streams: Sequence[IO[bytes] | int],
        kind: str = ARBITER,
        program: Path | None = None,
    ) -> None:
        """Start it with these as its standard streams; `program` is a file to run instead of `supervisor`."""
        self.args = [str(program or "supervisor"), *words]
        self.returncode: int | None = None
        request = {"words": list(words), "cwd": str(cwd), "env": dict(env), "kind": kind, "program": program}
        fds = [stream if isinstance(stream, int) else stream.fileno() for stream in streams]
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(_server(kind)[0])
        message = json.dumps(request, default=str).encode()
        self._connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        self.pid = int(self._connection.recv(100))

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._exit_code(0)

    def wait(self, timeout: float | None = None) -> int:
        """The same when it has ended. Raises TimeoutExpired."""
        code = self._exit_code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def _exit_code(self, timeout_s: float | None) -> int | None:
        """It is a zombie until this returns its exit code, as a child is."""
        if self.returncode is None:
            self._connection.settimeout(timeout_s)
            try:
                self.returncode = int(self._connection.recv(100))
            except (TimeoutError, BlockingIOError):
                return None
            self._connection.settimeout(None)
            self._connection.send(b"seen")
            Forked.used_s += float(self._connection.recv(100))
            self._connection.close()
        return self.returncode


def run(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: bytes = b"", limit_s: float = 60
) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end. Raises TimeoutExpired after `limit_s`."""
    if not can_fork(env):
        return subprocess.run(
            [sys.executable, "-m", "supervisor", *words],
            cwd=cwd, env=env, input=stdin, capture_output=True, timeout=limit_s, check=False,
        )  # fmt: skip
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        code = run_on(words, cwd=cwd, env=env, streams=(given, out, err), limit_s=limit_s)
        texts = [(file.seek(0), file.read())[1] for file in (out, err)]
    return subprocess.CompletedProcess(["supervisor", *words], code, *texts)


def run_on(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], streams: Sequence[IO[bytes] | int], limit_s: float = 60
) -> int:
    """Run one command with these as its standard streams; the exit code, negative for a signal."""
    command = Forked(words, cwd=cwd, env=env, streams=streams, kind=KINDS.get(words[0] if words else "", COMMAND))
    try:
        return command.wait(limit_s)
    except subprocess.TimeoutExpired:
        command.kill()
        command.wait()
        raise


@cache
def _server(kind: str) -> tuple[str, float]:
    """The address of this process's own server of that kind, and how many milliseconds its start took."""
    folder = tempfile.mkdtemp(prefix="commands-", dir="/tmp")
    path = f"{folder}/s"
    began_s = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, path, kind],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env=_ENVIRONMENT | {MARK: "0" * MARK_LENGTH},
        start_new_session=True,  # a signal to the whole group (Ctrl-C, `timeout`) leaves it to end the commands
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"ready\n", "the server of commands did not start"
    took_ms = (time.monotonic() - began_s) * 1000

    def end() -> None:
        process.communicate()  # it leaves when its stdin is closed
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return path, took_ms


# The process that forks


def serve(path: str, kind: str) -> NoReturn:
    """Fork a command for each connection until stdin is closed."""
    import selectors

    from supervisor.cli.main import COMMANDS

    for name in PRELOADED[kind]:
        importlib.import_module(name)
    if kind == SERVICE:
        from supervisor.cli.api import module_of

        for name in PRELOADED_OF_SERVICE:
            module_of(name)
    for name, module in COMMANDS.items():
        if kind == COMMAND and name not in KINDS:
            importlib.import_module(f"supervisor.cli.{module}")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(listener, selectors.EVENT_READ)
        while all(key.fileobj is listener for key, _ in selector.select()):
            connection, _ = listener.accept()
            if not os.fork():
                selector.close()
                listener.close()
                _attend(connection)
            connection.close()
    os._exit(0)


def _attend(connection: socket.socket) -> NoReturn:
    """Fork the command, wait for it, answer with its pid and its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, fds, _, _ = socket.recv_fds(connection, REQUEST_BYTES_MAX, 3)
    pid = os.fork()
    if not pid:
        connection.close()
        _become(json.loads(request), fds)
    connection.send(str(pid).encode())
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    with contextlib.suppress(OSError):
        connection.send(str(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status).encode())
        connection.recv(100)
    usage = os.wait4(pid, 0)[2]
    with contextlib.suppress(OSError):
        connection.send(str(usage.ru_utime + usage.ru_stime).encode())
    os._exit(0)


def _become(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """Be the command: what an interpreter would find at its start, then `main`, then what it does at its end."""
    from supervisor.cli.main import main

    if request["kind"] == ARBITER:
        os.setsid()
    os.chdir(request["cwd"])
    _show_mark(request["env"].get(MARK, ""))
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    program = request["program"]
    sys.argv = [program or "supervisor", *request["words"]]
    # What an arbiter execs to load new code.
    sys.orig_argv = [sys.executable, *(("-P", program) if program else ("-m", "supervisor")), *request["words"]]
    if request["kind"] == COMMAND:
        sys.path.insert(0, request["cwd"])
    code: Any = 1
    try:
        if program:
            runpy.run_path(program, run_name="__main__")
        else:
            main()
    except SystemExit as leave:
        code = leave.code
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _show_mark(mark: str) -> None:
    """Write the mark into the environment that /proc shows, which is the one that this process was started with."""
    if len(mark) != MARK_LENGTH:
        return
    import ctypes

    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    ctypes.memmove(libc.getenv(MARK.encode()), mark.encode(), MARK_LENGTH)


if __name__ == "__main__":
    serve(*sys.argv[1:3])
