"""Runs an arbiter with stand-in children (`standin_main`) for a test and reads what they did."""

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from supervisor.control.client import request
from supervisor.settings.load import load
from supervisor.settings.paths import PoolPaths, pool_paths
from tests.support.command_server import MARK, Forked, can_fork, imports_ms
from tests.support.pool import clean_environment
from tests.support.servers import free_port
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "support" / "standin_main.py"
HANDLERS = """
from supervisor import handler

@handler("events", group="group")
async def handle(message: dict[str, str]) -> None: ...
"""


class Standins:
    """An arbiter with stand-in children in a folder of its own."""

    def __init__(
        self, folder: Path, *, workers: int = 2, orders: dict[str, str] | None = None, api: bool = False,
        pool: str = "", app: str = "", args: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        """`pool` and `app` are lines of these sections of config.toml; `orders` say how workers behave."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.args = folder, args
        self.config = folder / "config.toml"
        self.config.write_text(
            f'[redis]\nurl = "redis://nowhere"\n[api]\nenabled = {str(api).lower()}\nbind = "127.0.0.1:{free_port()}"\n'
            f'[log]\nformat = "json"\n'
            f"[pool]\nworkers = {workers}\n{pool}\n[app]\n{app}\n"
        )
        (folder / "handlers.py").write_text(HANDLERS)
        self.order(orders or {})
        self.process: subprocess.Popen[bytes] | Forked | None = None
        self.python = sys.executable
        self._mark = uuid.uuid4().hex
        #: As in `Pool`.
        self.started_ms = 0.0
        #: Taken while the configuration is whole: some tests break it.
        self.paths: PoolPaths = pool_paths(load(self.config, environ={}).settings)

    def rival(self) -> Self:
        """Return another arbiter for the same folder, not started. Its files stay as they are: others may read them."""
        rival = copy.copy(self)
        rival.process, rival.started_ms, rival._mark = None, 0.0, uuid.uuid4().hex
        return rival

    def order(self, orders: dict[str, str]) -> None:
        """Set the behaviour of workers that are spawned from now on."""
        draft = self.folder / "orders.new"
        draft.write_text(json.dumps(orders))
        draft.replace(self.folder / "orders.json")

    # Starting and ending

    def start(self, *, ready: bool = True) -> Self:
        words, env = [str(self.config), *self.args], clean_environment() | {MARK: self._mark}
        forks = self.python == sys.executable and can_fork(env)
        spared_ms = imports_ms() if forks else 0.0
        began_s = now_s()
        with open(os.devnull, "rb") as none, (self.folder / "err").open("ab") as err:
            if forks:
                self.process = Forked(words, cwd=ROOT, env=env, streams=(none, err, err), program=PROGRAM)
            else:
                self.process = subprocess.Popen(
                    # Without the repository's own folder, whose handlers/ would be found before the project's.
                    [self.python, "-P", str(PROGRAM), *words],
                    cwd=ROOT, stdin=none, stdout=err, stderr=err, start_new_session=True, env=env,
                )  # fmt: skip
        if ready:
            self.wait_ready()
            self.started_ms = max(self.started_ms, spared_ms + (now_s() - began_s) * 1000)
        return self

    def wait_ready(self, limit_s: float = 30.0) -> dict[str, Any]:
        def is_ready() -> dict[str, Any] | None:
            assert self.process is None or self.process.poll() is None, self.err
            status = self.status()
            return status if status["state"] == "healthy" and status["operation"] is None else None

        found = eventually(is_ready, limit_s, what="the pool is healthy")
        assert found is not None
        return found

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, limit_s: float = 30.0) -> int:
        assert self.process is not None
        code = self.process.wait(limit_s)
        self.process = None
        return code

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        code = self.wait()
        eventually(lambda: not self.processes(), what="no process is left")
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        try:
            eventually(lambda: not self.processes(), 10.0, what="no process of the pool is left")
        except AssertionError as left:
            if error is None:
                raise
            error.add_note(str(left))
        finally:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()

    # Looking at it

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def ask(self, cmd: str, **args: Any) -> dict[str, Any]:
        return request(self.paths, cmd, **args)

    def status(self) -> dict[str, Any]:
        return self.ask("status")

    def worker(self, slot: int) -> dict[str, Any]:
        found: dict[str, Any] = next(w for w in self.status()["workers"] if w["slot"] == slot)
        return found

    def pids(self) -> dict[int, int]:
        return {worker["slot"]: worker["pid"] for worker in self.status()["workers"] if worker["pid"]}

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of one event."""
        lines = [json.loads(line) for line in self.err.rpartition("\n")[0].splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def notes(self, what: str) -> list[dict[str, Any]]:
        """Return what the stand-ins recorded."""
        path = self.folder / "notes"
        lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
        return [note for note in map(json.loads, lines) if note["what"] == what]

    def processes(self) -> list[psutil.Process]:
        """Return all living processes of the pool, also orphans."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found

    def zombies(self) -> list[int]:
        children = psutil.Process(self.pid).children()
        return [child.pid for child in children if child.status() == psutil.STATUS_ZOMBIE]

    def fds(self) -> int:
        return psutil.Process(self.pid).num_fds()


def is_gone(pid: int) -> bool:
    """Return whether the process is gone or a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def now_s() -> float:
    return time.monotonic()
