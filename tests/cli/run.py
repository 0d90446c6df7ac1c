"""Running the command as its users do: a process with its own folder and environment."""

import contextlib
import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support import command_server
from tests.support.pool import clean_environment

LIMIT_S = 60
COMMAND = [sys.executable, "-m", "supervisor"]


def run(
    *words: str, cwd: Path, redis_url: str = "", stdin: str | bytes = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    found = command_server.run(words, cwd=cwd, env=environment(redis_url) | (env or {}), stdin=given, limit_s=LIMIT_S)
    return subprocess.CompletedProcess(found.args, found.returncode, found.stdout.decode(), found.stderr.decode())


def spawn(*words: str, cwd: Path, redis_url: str = "", **options: Any) -> subprocess.Popen[bytes]:
    """Start one command with pipes for all three streams."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = environment(redis_url) | options.pop("env", {})
    return subprocess.Popen([*COMMAND, *words], cwd=cwd, env=env, **(pipes | options))


def environment(redis_url: str) -> dict[str, str]:
    """Nothing of the tests' own settings; wide enough for no help text to wrap."""
    return clean_environment() | ({"REDIS_URL": redis_url} if redis_url else {}) | {"COLUMNS": "110"}


def data(done: subprocess.CompletedProcess[str]) -> Any:
    """What a command with --json printed."""
    return json.loads(done.stdout)


def lines_of(done: subprocess.CompletedProcess[str]) -> list[Any]:
    """The same, one object a line."""
    return [json.loads(line) for line in done.stdout.splitlines()]


@contextlib.contextmanager
def terminal_of(columns: int, lines: int) -> Iterator[tuple[int, int, bytearray]]:
    """Open a terminal of that size: both ends, and what was printed there so far."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))
    printed = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # nobody has its other side open any more
            while chunk := os.read(master, 65536):
                printed.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield master, slave, printed
    finally:
        os.close(slave)
        reader.join()
        os.close(master)


def run_on_terminal(*words: str, cwd: Path, redis_url: str = "", columns: int = 80, lines: int = 50) -> str:
    """Run one command on a terminal of that size, without colours; what it printed there."""
    env = {name: value for name, value in environment(redis_url).items() if name not in ("COLUMNS", "LINES")}
    terminal = {"NO_COLOR": "1", "TERM": "xterm"}
    with terminal_of(columns, lines) as (_, slave, printed):
        command_server.run_on(words, cwd=cwd, env=env | terminal, streams=[slave] * 3, limit_s=LIMIT_S)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.decode(errors="replace")).replace("\r\n", "\n")
