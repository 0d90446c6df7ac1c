"""Loads new code and configuration without a new process: the arbiter execs itself and keeps its children.

1. The same command line first runs as a preflight, which only loads configuration and handlers. If it
   fails, nothing has changed.
2. Then the process image is replaced. The pid, the children, the lock, the control socket and the shared
   memory stay; the state of the children is passed on in an inherited memory file.
3. If loading fails now, because files have changed since, the image is replaced once more. The next one loads nothing:
   it keeps the children, and begins with a preflight again and again until one succeeds.
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any, NoReturn, get_args, get_type_hints

import supervisor
from supervisor.arbiter import snapshot
from supervisor.arbiter.fork import exec_command, own_command
from supervisor.arbiter.import_probe import UNSAFE_VARIABLE
from supervisor.arbiter.loop import Loop
from supervisor.arbiter.started_from import StartedFrom
from supervisor.arbiter.state_dir import PoolLocation, identity_of
from supervisor.arbiter.systemd import SystemdNotifier
from supervisor.core.restart_policy import Exit, ExitKind, History
from supervisor.core.slot import Slot, State
from supervisor.errors import ConfigError, SupervisorError
from supervisor.http_bind import close, listen, pool_bind
from supervisor.memfd import create_memfd
from supervisor.settings.load import Loaded
from supervisor.settings.model import Settings
from supervisor.shared_state import LAYOUT_VERSION, fingerprint

# Not SUPERVISOR_*: those are settings, and an unknown setting is an error.
STATE_VARIABLE = "_SUPERVISOR_STATE_FD"
PREFLIGHT_VARIABLE = "_SUPERVISOR_PREFLIGHT"
PREFLIGHT_LIMIT_S = 60.0
STATE_BYTES_MAX = 16 * 1024 * 1024


#: What a preflight reports when nothing is wrong.
_findings: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class ReloadState:
    """What an arbiter passes to its successor in the same process."""

    shared_fd: int
    lock_fd: int
    control_fd: int
    workers: list[Slot]
    services: list[Slot]
    #: The number of workers in the settings; `scale` may have changed the real number.
    configured_workers: int
    redis: dict[str, Any]
    #: Name of a child -> the memory file for its stack dumps.
    stack_fds: dict[str, int]
    #: `Outputs.state`.
    outputs: list[dict[str, Any]]
    #: `HttpListener.state`.
    http: dict[str, Any] | None
    #: Numbers of signals that have arrived and were not handled.
    signals: list[int]
    state_dir_fd: int
    #: The settings and handlers of the workers that run: `snapshot.pack`.
    snapshot: str
    #: Why new code could not be loaded by this image's predecessor; empty: it is to be loaded.
    load_error: str = ""
    #: When that was first found, monotonic; 0: never.
    held_since_s: float = 0.0

    @property
    def sockets(self) -> list[int]:
        """The descriptors that are sockets."""
        return [self.control_fd, *(self.http["fds"] if self.http else [])]

    @property
    def fds(self) -> list[int]:
        """All descriptors that the successor needs."""
        ready_fd = [self.http["ready_fd"]] if self.http else []
        pipes = [output["read_fd"] for output in self.outputs]
        own = [self.shared_fd, self.lock_fd, self.state_dir_fd]
        return [*own, *self.sockets, *ready_fd, *self.stack_fds.values(), *pipes]


def shape_of(kind: Any) -> Any:
    """Return the names and types of all parts of a type, recursively."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: shape_of(hints[field.name]) for field in fields(kind)}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {member.name: member.value for member in kind}
    return [getattr(kind, "__name__", ""), *(shape_of(part) for part in get_args(kind))]


#: Identifies the layout of the state; a successor with another one can't read it.
LAYOUT = f"{fingerprint(shape_of(ReloadState)):016x}-{LAYOUT_VERSION:016x}"


def identity(settings: Settings) -> dict[str, Any]:
    """Return the settings that a running pool can't change; its state directory is compared by itself."""
    return {
        "redis.url": settings.redis.url,
        "pool.host": settings.pool.host,
        "pool.name": settings.pool.name,
    }


# The preflight


def exec_preflight(settings: Settings, location: PoolLocation, out_fd: int) -> NoReturn:
    """In a forked child: exec the preflight, which writes its report to `out_fd`; handlers' prints go to stderr."""
    os.dup2(2, 1)
    os.set_inheritable(out_fd, True)
    request = {
        "layout": LAYOUT,
        "identity": identity(settings),
        "state_dir": str(location.state_dir.path),
        "state_id": location.state_dir.identity,
        "bind": pool_bind(settings),
        "out_fd": out_fd,
    }
    location.started_from.enter()
    environment = {**os.environ, **location.started_from.variable(), PREFLIGHT_VARIABLE: json.dumps(request)}
    exec_command(own_command(), environment)


def preflight_request() -> dict[str, Any] | None:
    """Return what the preflight has to check; None if this process is not one."""
    text = os.environ.pop(PREFLIGHT_VARIABLE, None)
    request: dict[str, Any] | None = json.loads(text) if text else None
    return request


def check_compatible(request: dict[str, Any], settings: Settings) -> None:
    """Raise ConfigError if the running pool can't continue with these settings or this version."""
    # The layout comes first: another version may have written the rest differently.
    if request.get("layout") != LAYOUT:
        raise ConfigError(
            "this is another version of supervisor, which can't read the state of the running pool:"
            " stop and start it for that"
        )
    own, before = identity(settings), request["identity"]
    changed = [name for name in before if before[name] != own.get(name)]
    if changed:
        raise ConfigError(f"{', '.join(changed)} changed since the pool was started: stop and start it for that")
    if identity_of(settings.state_dir) != request["state_id"]:
        raise ConfigError(
            f"state_dir is {settings.state_dir} now, and the pool keeps its state in {request['state_dir']}: the new"
            " workers would leave it behind. Set state_dir to a folder that all releases share, then stop and start it"
        )
    bind = pool_bind(settings)
    if bind and bind != request["bind"]:
        close(listen(bind), bind)


def note_preloaded(preloaded: bool) -> None:
    """In a preflight: report whether the successor may import the handlers itself."""
    _findings["preloaded"] = preloaded


@contextlib.contextmanager
def errors_to_arbiter() -> Iterator[None]:
    """In a preflight, send SupervisorErrors and findings to the arbiter, not to stderr; elsewhere do nothing."""
    text = os.environ.get(PREFLIGHT_VARIABLE)
    try:
        yield
        if text and _findings:
            os.write(json.loads(text)["out_fd"], json.dumps(_findings).encode())
    except SupervisorError as error:
        out_fd = json.loads(text).get("out_fd") if text else None
        if out_fd is None:
            raise
        report = {"error": str(error), "traceback": _traceback(error)}
        os.write(out_fd, json.dumps(report).encode())
        raise SystemExit(error.exit_code) from None


def _traceback(error: BaseException) -> str:
    """Return the traceback of what a module of the project has raised; empty when nothing has."""
    cause = error.__cause__
    if cause is None:
        return ""
    own = os.path.dirname(supervisor.__file__)
    entries = traceback.TracebackException.from_exception(cause)
    frames = [f for f in entries.stack if "importlib" not in f.filename and not f.filename.startswith(own)]
    entries.stack = traceback.StackSummary.from_list(frames)
    return "".join(entries.format()).rstrip()


# The exec


def begin_again(started_from: StartedFrom, preflight: dict[str, Any] | None = None) -> NoReturn:
    """Exec this command once more, before it has started anything, to import the handlers elsewhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    command = own_command()
    more = {PREFLIGHT_VARIABLE: json.dumps(preflight)} if preflight else {}
    os.execve(command[0], command, {**os.environ, UNSAFE_VARIABLE: "1", **started_from.variable(), **more})


def hold_on_error(error: BaseException, started_from: StartedFrom | None) -> None:
    """In a successor that can't load its configuration: as `exec_held`; elsewhere do nothing."""
    inherited = read_state()
    if inherited is not None and started_from is not None:
        exec_held(inherited, error, started_from)


def exec_held(state: ReloadState, error: BaseException, started_from: StartedFrom) -> NoReturn:
    """Replace the image by one that loads nothing and keeps the children, because loading has failed."""
    since_s = state.held_since_s or time.monotonic()
    state = replace(state, load_error=str(error) or type(error).__name__, held_since_s=since_s)
    _exec(state, {**os.environ, **started_from.variable()})


def exec_successor(
    state: ReloadState, location: PoolLocation, loop: Loop, systemd: SystemdNotifier, *, preloaded: bool
) -> NoReturn:
    """Replace the image of this process. Raises OSError; then nothing has changed.

    `preloaded`: the successor may import the handlers itself, as the preflight has found.
    """
    # The exec removes signal handlers, and most default actions end the process. So signals stay blocked
    # until the successor has installed its own.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    state = replace(state, signals=loop.take_signals())
    systemd.reloading()
    try:
        unsafe = {} if preloaded else {UNSAFE_VARIABLE: "1"}
        with _working_dir_kept():
            location.started_from.enter()
            _exec(state, {**os.environ, **systemd.environment(), **location.started_from.variable(), **unsafe})
    finally:
        systemd.ready()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in state.signals:
            signal.raise_signal(number)


@contextlib.contextmanager
def _working_dir_kept() -> Iterator[None]:
    """Return to the present working directory at the end. Raises OSError."""
    here = os.open(os.curdir, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        os.fchdir(here)
        os.close(here)


def _exec(state: ReloadState, environment: dict[str, str]) -> NoReturn:
    """Exec with the state's descriptors inheritable; the exec closes all others."""
    fd = create_memfd("state")
    try:
        os.write(fd, _encode(state))
        os.lseek(fd, 0, os.SEEK_SET)
        for kept in (fd, *state.fds):
            os.set_inheritable(kept, True)
        sys.stdout.flush()
        sys.stderr.flush()
        command = own_command()
        os.execve(command[0], command, {**environment, STATE_VARIABLE: str(fd)})
    finally:
        os.close(fd)
        for kept in state.fds:
            os.set_inheritable(kept, False)


def held_settings() -> Loaded | None:
    """Return the settings to go on with, if this image is to load nothing, because its predecessor could not."""
    text = os.environ.get(STATE_VARIABLE)
    state = _decode(os.pread(int(text), STATE_BYTES_MAX, 0)) if text else None
    return snapshot.unpack(state.snapshot)[0] if state and state.load_error else None


def read_state() -> ReloadState | None:
    """Return the state from this process's earlier image; None if there was none."""
    text = os.environ.pop(STATE_VARIABLE, None)
    if text is None:
        return None
    with os.fdopen(int(text), "rb") as file:
        state = _decode(file.read())
    for fd in state.fds:
        os.set_inheritable(fd, False)
    return state


def _encode(state: ReloadState) -> bytes:
    def plain(value: object) -> object:
        if isinstance(value, State | ExitKind):
            return value.value
        raise TypeError(type(value).__name__)

    return json.dumps(asdict(state), default=plain).encode()


def _decode(data: bytes) -> ReloadState:
    state = json.loads(data)
    state["workers"] = [_slot(slot) for slot in state["workers"]]
    state["services"] = [_slot(slot) for slot in state["services"]]
    return ReloadState(**state)


def _slot(fields: dict[str, Any]) -> Slot:
    last_exit = fields["last_exit"]
    if last_exit is not None:
        last_exit = Exit(**{**last_exit, "kind": ExitKind(last_exit["kind"])})
    history = History(**fields["history"])
    return Slot(**{**fields, "state": State(fields["state"]), "history": history, "last_exit": last_exit})
