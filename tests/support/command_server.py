"""Runs `supervisor` commands in forks of one process that has imported them already.

A command is a process of its own with its own folder, environment, standard streams and exit code, as one that was
started by `python -m supervisor`; only the interpreter's start and the imports, most of its CPU time, are saved.
`start` and `api` are always started afresh: what they import is part of what they promise.

As a program (`python -P command_server.py SOCKET`) this file is the process that forks.
"""

import array
import atexit
import contextlib
import importlib
import json
import os
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
from typing import IO, Any, NoReturn

#: These are started by a new interpreter.
AFRESH = frozenset({"start", "api"})
PRELOADED = ("redis.asyncio", "rich.table", "supervisor.overview", "supervisor.status")
REQUEST_BYTES_MAX = 1 << 20


# In the tests


def run(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], stdin: bytes = b"", limit_s: float = 60
) -> subprocess.CompletedProcess[bytes]:
    """Run one command to its end. Raises TimeoutExpired after `limit_s`."""
    if not words or words[0] in AFRESH:
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
    request = json.dumps({"words": list(words), "cwd": str(cwd), "env": dict(env)}).encode()
    fds = [stream if isinstance(stream, int) else stream.fileno() for stream in streams]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(limit_s)
        connection.connect(_server())
        connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        pid = int(connection.recv(100))
        try:
            return int(connection.recv(100))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(["supervisor", *words], limit_s) from None


@cache
def _server() -> str:
    """The address of this process's own server."""
    folder = tempfile.mkdtemp(prefix="commands-", dir="/tmp")
    path = f"{folder}/s"
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"ready\n", "the server of commands did not start"

    def end() -> None:
        process.communicate()  # it leaves when its stdin is closed
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return path


# The process that forks


def serve(path: str) -> NoReturn:
    """Fork a command for each connection until stdin is closed."""
    import selectors

    from supervisor.cli.main import COMMANDS

    for name in (*PRELOADED, *(f"supervisor.cli.{module}" for name, module in COMMANDS.items() if name not in AFRESH)):
        importlib.import_module(name)
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
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(OSError):
        connection.send(str(code).encode())
    os._exit(0)


def _become(request: dict[str, Any], fds: list[int]) -> NoReturn:
    """Be the command: what an interpreter would find at its start, then `main`, then what it does at its end."""
    from supervisor.cli.main import main

    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv = ["supervisor", *request["words"]]
    sys.path.insert(0, request["cwd"])
    code: Any = 1
    try:
        main()
    except SystemExit as leave:
        code = leave.code
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    serve(sys.argv[1])
