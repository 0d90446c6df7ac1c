"""Which child process is started with what: workers, keeper, relay, boot check, HTTP service, Redis server."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import supervisor
from supervisor.arbiter import embedded_redis, fork
from supervisor.arbiter.http_listener import HttpListener
from supervisor.arbiter.locks import lock_slot, unusable
from supervisor.arbiter.outputs import Outputs
from supervisor.arbiter.stack_dumps import StackDumps
from supervisor.arbiter.state_dir import StateDir
from supervisor.core.outcome import Crash
from supervisor.errors import EXIT_FAILED, WORKER_TEMPFAIL, HandlerError
from supervisor.handling.loader import HandlerSpec, load_handlers
from supervisor.keys import consumer_name, pool_id
from supervisor.log import exported_stderr, worker_logger
from supervisor.settings.load import Loaded
from supervisor.settings.model import Settings
from supervisor.shared_state import SharedState, SlotField
from supervisor.standard_streams import STDERR, STDOUT
from supervisor.text import path_text

REDIS = "redis"
KEEPER = "keeper"
RELAY = "relay"
API = "api"

Specs = Sequence[HandlerSpec]


def api_name(process: int) -> str:
    """Return the name of a process of the HTTP service: `api`, `api 2`, `api 3`."""
    return f"{API} {process + 1}" if process else API


def worker_name(slot: int) -> str:
    """Return the name of the process in a slot."""
    return f"worker {slot}"


def _run_relay(settings: Settings, shared: SharedState, token: str) -> int:
    from supervisor.outbox import relay  # only here: no other process needs SQLAlchemy for itself

    return relay.run(settings, shared, token)


@dataclass(frozen=True, slots=True)
class EntryPoints:
    """The functions that run in forked children, each returning an exit code, and the HTTP service's command."""

    #: (settings, specs, lease token, descriptor for the JSON report)
    boot: Callable[[Settings, Specs, str, int], int]
    #: (settings, specs, shared state, slot, burst, how the slot's last worker crashed)
    worker: Callable[[Settings, Specs, SharedState, int, bool, Crash | None], int]
    #: (settings, specs, shared state, lease token)
    keeper: Callable[[Settings, Specs, SharedState, str], int]
    #: Returns the arguments and the environment of the HTTP service.
    api: Callable[[Loaded], tuple[list[str], dict[str, str]]]
    #: (settings, shared state, lease token)
    relay: Callable[[Settings, SharedState, str], int] = _run_relay


def real_entry_points() -> EntryPoints:
    """Return the supervisor's own; importing them here lets the forked children share the modules."""
    from supervisor.control.discovery import pool_with_token
    from supervisor.keeper import keeper, preflight
    from supervisor.worker import process as worker

    def where_runs(token: str) -> str:
        pool = pool_with_token(token)
        return f"pid {pool.pid}, state directory {path_text(pool.paths.state_dir)}" if pool else ""

    def run_worker(
        settings: Settings, specs: Specs, shared: SharedState, slot: int, burst: bool, crash: Crash | None
    ) -> int:
        return worker.run(settings, specs, shared, slot, burst=burst, crash=crash)

    boot = partial(preflight.run, where_runs=where_runs)
    return EntryPoints(boot=boot, worker=run_worker, keeper=keeper.run, api=_api_command)


@dataclass(frozen=True, slots=True)
class Spawner:
    """Forks the children of one pool. The methods return a pid and raise OSError or ForkUnsafeError."""

    loaded: Loaded
    specs: Specs
    #: The handlers are imported here; otherwise each worker imports them itself.
    preloaded: bool
    state_dir: StateDir
    entry_points: EntryPoints
    shared: SharedState
    http: HttpListener
    stack_dumps: StackDumps
    outputs: Outputs
    #: Proves to Redis that the pool's lease is its own.
    lease_token: str
    burst: bool
    #: The control socket and its clients, the only sockets beside the HTTP service's.
    control_fds: Callable[[], list[int]]
    #: The arbiter's other descriptors. Children close all of them.
    private_fds: Callable[[], list[int]]

    def fork(
        self,
        name: str,
        body: Callable[[], int],
        *,
        uses_state: bool = False,
        uses_http: bool = False,
        **fields: Any,
    ) -> int:
        """Fork a child without the arbiter's descriptors.

        `uses_state`: the child opens files of the state directory. `uses_http`: it keeps the HTTP service's listener.
        `fields` name it on the lines that it prints.
        """
        control_fds, stacks, pipes = self.control_fds(), self.stack_dumps.fresh(name), self.outputs.open()
        close = [*self.private_fds(), *self.stack_dumps.fds(), *self.outputs.fds(), *control_fds]
        close += [fd for end in pipes.ends for fd in end[:2]] if pipes else []
        close += [] if uses_http else self.http.fds()
        close += [] if uses_state else [self.state_dir.fd]
        descriptors = fork.Descriptors(
            stacks=stacks,
            close=close,
            sockets=[*control_fds, *self.http.sockets()],
            outputs=(pipes.write_end(STDOUT), pipes.write_end(STDERR)) if pipes else None,
        )
        try:
            pid = fork.fork_child(body, name=name, fds=descriptors)
        except BaseException:
            if pipes:
                pipes.close()
            raise
        if pipes:
            self.outputs.started(pipes, name, {**(fields or {"service": name}), "pid": pid})
        return pid

    def worker(self, slot: int, crash: Crash | None) -> int:
        """Fork the worker of a slot; `crash` is how its last worker crashed."""
        settings = self.loaded.settings

        def body() -> int:
            self._lock(slot)
            os.close(self.state_dir.fd)
            specs = self.specs if self.preloaded else self._import(slot)
            return self.entry_points.worker(settings, specs, self.shared, slot, self.burst, crash)

        name = consumer_name(pool_id(settings.pool.host, settings.pool.name), slot)
        return self.fork(worker_name(slot), body, uses_state=True, slot=slot, worker=name)

    def _lock(self, slot: int) -> None:
        """In a worker: lock its slot. Ends the worker when that fails (on a full disk); it is tried again."""
        paths = self.state_dir.paths
        try:
            lock_slot(paths, slot)
        except OSError as error:
            log = worker_logger(self.loaded.settings, slot)
            log.error("worker can't start", error=str(unusable(paths.state_dir / paths.slots.name, error)))
            self.shared.slot(slot).set(SlotField.EXIT_CODE, 1 + WORKER_TEMPFAIL)
            raise SystemExit(WORKER_TEMPFAIL) from None

    def _import(self, slot: int) -> Specs:
        """In a worker: import the handlers as they are now. Ends the worker when that fails; it is tried again."""
        try:
            return load_handlers(self.loaded.settings, self.loaded.root, self.loaded.origins)
        except HandlerError as error:
            worker_logger(self.loaded.settings, slot).error("worker can't start", error=str(error))
            self.shared.slot(slot).set(SlotField.EXIT_CODE, 1 + EXIT_FAILED)
            raise SystemExit(EXIT_FAILED) from None

    def keeper(self) -> int:
        """Fork the keeper."""
        settings, run = self.loaded.settings, self.entry_points.keeper
        return self.fork(KEEPER, lambda: run(settings, self.specs, self.shared, self.lease_token))

    def relay(self) -> int:
        """Fork the relay of the outbox."""
        settings, run = self.loaded.settings, self.entry_points.relay
        return self.fork(RELAY, lambda: run(settings, self.shared, self.lease_token))

    def boot_check(self, out_fd: int) -> int:
        """Fork the boot check, which writes its report to `out_fd`."""
        settings, run = self.loaded.settings, self.entry_points.boot
        return self.fork("boot", lambda: run(settings, self.specs, self.lease_token, out_fd))

    def api(self, process: int) -> int:
        """Start a process of the HTTP service on the arbiter's listening socket."""
        self.http.open()
        self.http.reset_ready(process)
        command, environment = self.entry_points.api(self.loaded)

        def body() -> int:
            return fork.exec_command(command, environment | self.http.export(process) | exported_stderr())

        return self.fork(api_name(process), body, uses_http=True)

    def redis(self) -> int:
        """Start the embedded Redis server."""
        binary, settings, paths = embedded_redis.find_binary(), self.loaded.settings, self.state_dir.paths
        return self.fork(REDIS, lambda: embedded_redis.become_server(binary, settings, paths), uses_state=True)


def _api_command(loaded: Loaded) -> tuple[list[str], dict[str, str]]:
    """Return the command of `supervisor api`; values from flags are passed in the environment."""
    # By its path and without the working directory, because a project may have a supervisor.py.
    program = str(Path(supervisor.__file__).with_name("__main__.py"))
    command = [sys.executable, "-P", program, "api", "--bind", loaded.settings.api.bind]
    if loaded.real_path is not None:
        command += ["--config", str(loaded.real_path)]
    # The pool's own, wherever links lead by now.
    state_dir = {"SUPERVISOR_STATE_DIR": str(loaded.settings.state_dir)}
    return command, {**os.environ, **_flags_as_environment(loaded), **state_dir}


def _flags_as_environment(loaded: Loaded) -> dict[str, str]:
    environment = {}
    for key, origin in loaded.origins.items():
        if not origin.startswith("flag "):
            continue
        value: Any = loaded.settings
        for part in key.split("."):
            value = getattr(value, part)
        name = "SUPERVISOR_" + key.upper().replace(".", "__")
        environment[name] = value if isinstance(value, str) else json.dumps(value)
    return environment
