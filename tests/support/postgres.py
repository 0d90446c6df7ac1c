"""A PostgreSQL server of the test session, from the system's package; its tests are skipped where there is none."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import eventually

#: Durability is not what the tests are about, and initdb takes most of the time.
_OPTIONS = ("fsync=off", "listen_addresses=", "max_connections=40", "shared_buffers=16MB")


def binaries() -> Path | None:
    """The folder of initdb and postgres, which Debian keeps off PATH."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve()] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class PostgresServer:
    """The server; `stop` and `start` make an outage."""

    def __init__(self) -> None:
        """Make a database cluster and start it. Skips the test where that is not possible."""
        folder = binaries()
        if folder is None:
            pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
        # As root it refuses to run; its folder must not be below one that only root may enter.
        self._user = "nobody" if os.getuid() == 0 else None
        self._bin = folder
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        if self._user:
            shutil.chown(self.folder, self._user)
        self._data = self.folder / "data"
        self._run("initdb", "-D", str(self._data), "-U", "test", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8")
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        self.start()

    def url(self, database: str, driver: str = "psycopg") -> str:
        """The URL of a database for SQLAlchemy."""
        return f"postgresql+{driver}://test@/{database}?host={self.folder}"

    def create(self) -> str:
        """Make an empty database; return its name."""
        self._number += 1
        name = f"test{self._number}"
        self._psql(f"CREATE DATABASE {name} STRATEGY file_copy")
        return name

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [word for option in _OPTIONS for word in ("-c", option)]
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-k", str(self.folder), *options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, user=self._user, cwd=self.folder, stdout=log, stderr=log)
        eventually(self._answers, 30, what="PostgreSQL answers")

    def stop(self) -> None:
        """End it; what was committed stays."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        """End it and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        words = [str(self._bin / "pg_isready"), "-q", "-h", str(self.folder)]
        return subprocess.run(words, check=False).returncode == 0

    def _psql(self, statement: str) -> None:
        self._run("psql", "-h", str(self.folder), "-U", "test", "-d", "postgres", "-qc", statement)

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *words], user=self._user, cwd=self.folder, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Give a server that is removed again."""
    server = PostgresServer()
    try:
        yield server
    finally:
        server.close()
