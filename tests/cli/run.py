"""Running the command as its users do: a process with its own folder and environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.pool import clean_environment

LIMIT_S = 60
COMMAND = [sys.executable, "-m", "supervisor"]


def run(
    *words: str, cwd: Path, redis_url: str = "", stdin: str | bytes = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    found = subprocess.run(
        [*COMMAND, *words],
        cwd=cwd,
        env=environment(redis_url) | (env or {}),
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=LIMIT_S,
        check=False,
    )
    return subprocess.CompletedProcess(found.args, found.returncode, found.stdout.decode(), found.stderr.decode())


def spawn(*words: str, cwd: Path, redis_url: str = "", **options: Any) -> subprocess.Popen[bytes]:
    """Start one command with pipes for all three streams."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*COMMAND, *words], cwd=cwd, env=environment(redis_url), **(pipes | options))


def environment(redis_url: str) -> dict[str, str]:
    """Nothing of the tests' own settings; wide enough for no help text to wrap."""
    return clean_environment() | ({"REDIS_URL": redis_url} if redis_url else {}) | {"COLUMNS": "110"}


def data(done: subprocess.CompletedProcess[str]) -> Any:
    """What a command with --json printed."""
    return json.loads(done.stdout)


def lines_of(done: subprocess.CompletedProcess[str]) -> list[Any]:
    """The same, one object a line."""
    return [json.loads(line) for line in done.stdout.splitlines()]
