"""A real Redis server of the test process: started at its first use, ended with the process, nothing on disk.

Each `database()` is an empty one, so tests do not see each other's keys.
"""

import atexit
import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from urllib.parse import quote

from supervisor.arbiter.embedded_redis import find_binary
from supervisor.broker.connect import client
from supervisor.errors import SupervisorError
from supervisor.unix_path import socket_path

_START_LIMIT_S = 20.0
_POLL_S = 0.005
_DATABASES = 1024
_PR_SET_PDEATHSIG = 1


class EmbeddedServer:
    """The server and its folder."""

    def __init__(self) -> None:
        """Start it and wait until it answers. Raises ConfigError without a binary, SupervisorError if it fails."""
        self.folder = Path(tempfile.mkdtemp(prefix="supervisor-test-"))
        self._socket = self.folder / "redis.sock"
        self._owner = os.getpid()
        # The path of the folder may be too long for a socket.
        options = ["--port", "0", "--unixsocket", self._socket.name, "--dir", "."]
        options += ["--save", "", "--appendonly", "no", "--databases", str(_DATABASES), "--daemonize", "no"]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [find_binary(), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                env={**os.environ, "LC_ALL": "C"},
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - it takes no lock
            )
        atexit.register(self.close)
        self._wait()

    @property
    def runs(self) -> bool:
        """Whether it runs, and belongs to this process."""
        return self._owner == os.getpid() and self._process.poll() is None

    def url(self, number: int) -> str:
        """Return the URL of a database."""
        return f"unix://{quote(os.fsencode(self._socket))}?db={number}"

    def close(self) -> None:
        """End it and remove its folder."""
        if self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self) -> None:
        until_s = time.monotonic() + _START_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until_s:
                text = (self.folder / "log").read_text(errors="replace")[-2000:]
                self.close()
                raise SupervisorError(f"the test server did not start:\n{text}")
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            with socket_path(self._socket) as path:
                probe.connect(path)
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith(b"+PONG")
        return False


_lock = threading.Lock()
_started: list[EmbeddedServer] = []
_numbers = itertools.count()


@cache
def state_folder() -> Path:
    """Return the `state_dir` of tests, removed at the end of the process."""
    folder, owner = Path(tempfile.mkdtemp(prefix="supervisor-test-")), os.getpid()
    atexit.register(_remove, folder, owner)
    return folder


def server() -> EmbeddedServer:
    """Return the server of this process, started if it does not run."""
    with _lock:
        if not (_started and _started[-1].runs):
            _started.append(EmbeddedServer())
        return _started[-1]


def database_url() -> str:
    """Return the URL of a database that no other test uses; after a thousand, the first one is used again."""
    return server().url(next(_numbers) % _DATABASES)


@asynccontextmanager
async def database() -> AsyncIterator[str]:
    """Give the URL of an empty database, which is emptied again."""
    url = database_url()
    try:
        yield url
    finally:
        await empty(url)


async def empty(url: str) -> None:
    """Remove all keys of a database."""
    redis = client(url)
    try:
        await redis.flushdb()
    finally:
        await redis.aclose()


def _remove(folder: Path, owner: int) -> None:
    if owner == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


def _die_with_parent() -> Callable[[], None] | None:
    """Return what a child calls before exec, so that it does not outlive a killed test process."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded here: a child that was forked beside threads must not take locks
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
