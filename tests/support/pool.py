"""A real pool for a test: a project folder, `supervisor start` as a process, and proof that nothing is left of it.

Every process of the pool inherits a mark in its environment; `close()` fails the test when one that
bears it is still alive, whoever its parent is by then.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from supervisor import compiled
from supervisor.control.client import request
from supervisor.settings.load import load
from supervisor.settings.paths import PoolPaths, pool_paths
from tests.support import command_server
from tests.support.command_server import MARK, Forked, can_fork, imports_ms
from tests.support.servers import free_port
from tests.support.waiting import eventually

PROGRAM = (sys.executable, "-m", "supervisor")


class Pool:
    """`supervisor start` in its own folder."""

    def __init__(
        self,
        folder: Path,
        handlers: str,
        *,
        redis_url: str = "",
        workers: int = 2,
        config: str = "",
        api: bool | None = False,
        args: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        program: Sequence[str] = PROGRAM,
        afresh: bool = False,
    ) -> None:
        """Write config.toml (`config` is its text) and handlers.py; start nothing yet.

        Without `redis_url` the pool starts its embedded server. With `api` the HTTP service listens
        on a free port, see `base_url`; None leaves it to `config`.

        The arbiter is a fork of a process that has imported what arbiters import. With `afresh`, with another
        `program` and where an interpreter would find another environment, it is a new interpreter.
        """
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = folder / "config.toml"
        self.config.write_text(textwrap.dedent(config))
        (folder / "handlers.py").write_text(textwrap.dedent(handlers))
        self.port = free_port() if api else 0
        self.base_url = f"http://127.0.0.1:{self.port}" if api else ""
        self._words = ["start", "--config", str(self.config), "--workers", str(workers)]
        self._words += ["--bind", f"127.0.0.1:{self.port}"] if api else ["--no-api"] if api is False else []
        self._words += args
        self._program = program
        self._afresh = afresh
        self._mark = uuid.uuid4().hex
        # In the environment, so that every command finds the same Redis.
        self.redis_url = redis_url
        self._env = clean_environment() | ({"SUPERVISOR_REDIS__URL": redis_url} if redis_url else {}) | (env or {})
        if api and "SUPERVISOR_API__PRODUCE_TIMEOUT_MS" not in self._env and "produce_timeout_ms =" not in config:
            # On a machine with much to do, Redis is not quick. Tests of refusals configure the limit that they need.
            self._env["SUPERVISOR_API__PRODUCE_TIMEOUT_MS"] = "5000"
        self.process: subprocess.Popen[bytes] | Forked | None = None
        #: How long the longest start of a new interpreter took, or would have, until all were READY; 0: none was
        #: waited for.
        self.started_ms = 0.0

    # Starting and ending

    def start(self, *, ready: bool = True, limit_s: float = 30.0, workers: int | None = None) -> Self:
        """Start it, with another number of workers; with `ready`, wait until all are READY and the pool is healthy."""
        if workers is not None:
            self._words[self._words.index("--workers") + 1] = str(workers)
        assert self.process is None, "the pool runs already"
        env = self._env | {MARK: self._mark}
        own_copy = (self.folder / "supervisor").exists()
        forks = self._program is PROGRAM and not self._afresh and not own_copy and can_fork(env)
        spared_ms = imports_ms() if forks else 0.0
        began_s = time.monotonic()
        with (
            open(os.devnull, "rb") as none,
            (self.folder / "out").open("ab") as out,
            (self.folder / "err").open("ab") as err,
        ):
            if forks:
                self.process = Forked(self._words, cwd=self.folder, env=env, streams=(none, out, err))
            else:
                self.process = subprocess.Popen(
                    [*self._program, *self._words],
                    cwd=self.folder, env=env, stdin=none, stdout=out, stderr=err, start_new_session=True,
                )  # fmt: skip
        if ready:
            self.wait_ready(limit_s)
            self.started_ms = max(self.started_ms, spared_ms + (time.monotonic() - began_s) * 1000)
        return self

    def wait_ready(self, limit_s: float = 30.0) -> dict[str, Any]:
        """The status in which every worker is READY. Fails at once when the pool has left."""

        def is_ready() -> dict[str, Any] | None:
            if self.pid and self.exit_code() is not None:
                raise PoolLeftError(f"the pool left with {self.exit_code()}")
            status = self.ask("status")
            ready = status["workers"] and all(worker["state"] == "READY" for worker in status["workers"])
            return status if ready and status["state"] == "healthy" else None

        try:
            found = eventually(is_ready, limit_s, what="all workers are READY and the pool is healthy")
        except (AssertionError, PoolLeftError) as error:
            raise AssertionError(f"{error}\n{self.output[-4000:]}") from None
        assert found is not None
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the arbiter alone."""
        os.kill(self.pid, number)

    def wait(self, limit_s: float = 30.0) -> int:
        """Wait for the arbiter to leave; its exit code, negative for a signal."""
        assert self.process is not None, "the pool does not run"
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the pool did not leave within {limit_s:g} s\n{self.output[-4000:]}") from None
        self.process = None
        return code

    def stop(self, limit_s: float = 30.0) -> int:
        """SIGTERM, wait; the exit code. Fails when a process of the pool is left."""
        self.send(signal.SIGTERM)
        code = self.wait(limit_s)
        self.assert_nothing_left()
        return code

    def close(self) -> None:
        """End it however it stands. Fails, after cleaning up, when it did not end by itself or left a process."""
        code: int | None = None
        failure: AssertionError | None = None
        if self.process is not None:
            try:
                self.send(signal.SIGCONT)
                self.send(signal.SIGTERM)
                code = self.wait()
            except (AssertionError, ProcessLookupError) as error:
                failure = AssertionError(f"closing the pool: {error}")
                self.process.kill() if self.process else None
                self.process.wait() if self.process else None
                self.process = None
        try:
            self.assert_nothing_left(code)
        finally:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
        if failure is not None:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except AssertionError as left:
            if error is None:
                raise
            error.add_note(str(left))

    # Looking at it

    @property
    def pid(self) -> int:
        """The arbiter's pid."""
        assert self.process is not None, "the pool does not run"
        return self.process.pid

    def exit_code(self) -> int | None:
        """The arbiter's exit code, None while it runs."""
        assert self.process is not None, "the pool does not run"
        return self.process.poll()

    @property
    def lines(self) -> list[str]:
        """All that the pool wrote so far, stdout first."""
        return self.output.splitlines()

    @property
    def output(self) -> str:
        """The same as one text."""
        return "".join((self.folder / name).read_text(errors="replace") for name in ("out", "err"))

    def command(self, *words: str, limit_s: float = 30.0, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run another `supervisor` command on this project, whatever its exit code."""
        if self._program is PROGRAM:
            given = (stdin or "").encode()
            done = command_server.run(
                [*words, "--config", str(self.config)], cwd=self.folder, env=self._env, stdin=given, limit_s=limit_s
            )
            texts = (text.decode() for text in (done.stdout, done.stderr))
            return subprocess.CompletedProcess(done.args, done.returncode, *texts)
        return subprocess.run(
            [*self._program, *words, "--config", str(self.config)],
            cwd=self.folder, env=self._env, input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True, text=True, timeout=limit_s, check=False,
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        """`supervisor status --json`. Raises AssertionError when it printed none."""
        done = self.command("status", "--json")
        assert done.stdout.strip(), f"status exited with {done.returncode}: {done.stderr}"
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    @functools.cached_property
    def paths(self) -> PoolPaths:
        """Where it keeps its files; taken while its configuration is whole."""
        return pool_paths(load(self.config, environ={}).settings)

    def ask(self, cmd: str, **args: Any) -> dict[str, Any]:
        """Ask the arbiter itself, without a process of the command line and without Redis."""
        return request(self.paths, cmd, **args)

    def worker(self, slot: int) -> dict[str, Any]:
        """What the arbiter says of a slot."""
        found: dict[str, Any] = next(w for w in self.ask("status")["workers"] if w["slot"] == slot)
        return found

    def pids(self) -> dict[int, int]:
        """Slot -> pid of the workers that run now."""
        return {worker["slot"]: worker["pid"] for worker in self.ask("status")["workers"] if worker["pid"]}

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log's lines of one event."""
        text = (self.folder / "err").read_text(errors="replace")
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if line["event"] == name]

    def kill_worker(self, slot: int = 0, number: signal.Signals = signal.SIGKILL) -> int:
        """Kill the worker in `slot` and see it die; the pid that it had."""
        pid = self.pids()[slot]
        before = psutil.Process(pid)
        before.send_signal(number)
        eventually(lambda: not _alive(before), 30, 0.002, what=f"worker {pid} is dead")
        return pid

    def processes(self) -> list[psutil.Process]:
        """Every live process of this pool, found by its mark; zombies show as children of the arbiter only."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found

    def assert_nothing_left(self, code: int | None = None, limit_s: float = 10.0) -> None:
        """Fail when a process of the pool is alive `limit_s` after its arbiter has left."""
        try:
            eventually(lambda: not self.processes(), limit_s, 0.02)
        except AssertionError:
            left = [_describe(process) for process in self.processes()]
            if left:
                raise AssertionError(f"left by the pool (exit {code}): {left}\n{self.output[-4000:]}") from None


class PoolLeftError(BaseException):
    """The pool ended while a test waited for it, so waiting is pointless."""


def clean_environment() -> dict[str, str]:
    """This process's environment without what would configure a pool."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == compiled.VARIABLE or not (name.startswith("SUPERVISOR_") or name in {"REDIS_URL", MARK})
    }


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill these; the end of an arbiter ends its children, so some may have ended before their turn."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {process.status()} {' '.join(process.cmdline())}"
    except psutil.Error as error:
        return repr(error)
