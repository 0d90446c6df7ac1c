"""Code and configuration afresh without a new process: the arbiter execs itself and goes on with its children.

1. First the same command line is run as a preflight that only reads configuration and handlers: when
   that fails, nothing has changed.
2. Then the process image is replaced: pid, children, lock, control socket and shared stay. What must be
   known of the children goes through an inherited memory file.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn, get_args, get_type_hints

from supervisor.arbiter.fork import exec_command
from supervisor.core.restart import Exit, ExitKind, History
from supervisor.core.slot import Slot, State
from supervisor.errors import ConfigError, SupervisorError
from supervisor.http_bind import listen, pool_bind
from supervisor.memfd import create_memfd
from supervisor.shared_state import LAYOUT_VERSION, fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.arbiter.arbiter import Arbiter
    from supervisor.settings.model import Settings

# Not SUPERVISOR_*: those are settings, and an unknown one is refused.
STATE_VARIABLE = "_SUPERVISOR_STATE_FD"
PREFLIGHT_VARIABLE = "_SUPERVISOR_PREFLIGHT"
PREFLIGHT_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class ReloadState:
    """What an arbiter hands to its successor in the same process."""

    shared_fd: int
    lock_fd: int
    listener_fd: int
    workers: list[Slot]
    services: list[Slot]
    #: How many workers the settings asked for, as opposed to `scale`.
    configured: int
    redis: dict[str, Any]
    #: Name of a child -> the memory file that it writes its stacks into.
    stack_fds: dict[str, int]
    #: `HttpListener.state`: the HTTP service's listening socket.
    http: dict[str, Any] | None
    #: Numbers of signals that have come and were not obeyed.
    signals: list[int]

    @property
    def sockets(self) -> list[int]:
        """Those of its descriptors that are sockets."""
        return [self.listener_fd, *([self.http["fd"]] if self.http else [])]

    @property
    def fds(self) -> list[int]:
        """All that the successor goes on with."""
        http = [self.http["ready_fd"]] if self.http else []
        return [self.shared_fd, self.lock_fd, *self.sockets, *http, *self.stack_fds.values()]


def shape_of(kind: Any) -> Any:
    """The names of all that a value of this type is made of."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: shape_of(hints[field.name]) for field in fields(kind)}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return {member.name: member.value for member in kind}
    return [getattr(kind, "__name__", ""), *(shape_of(part) for part in get_args(kind))]


#: What a successor must have been built with to understand what it is handed.
LAYOUT = f"{fingerprint(shape_of(ReloadState)):016x}-{LAYOUT_VERSION:016x}"


def identity(settings: Settings) -> dict[str, Any]:
    """What a running pool can't change: to take it over, the successor must agree on it."""
    return {
        "state_dir": str(settings.state_dir),
        "redis.url": settings.redis.url,
        "pool.host": settings.pool.host,
        "pool.name": settings.pool.name,
    }


# The preflight


def preflight_request() -> dict[str, Any] | None:
    """In the preflight: what to agree with. Else None."""
    text = os.environ.pop(PREFLIGHT_VARIABLE, None)
    found: dict[str, Any] | None = json.loads(text) if text else None
    return found


def check_compatible(wanted: dict[str, Any], settings: Settings) -> None:
    """Raises ConfigError when the pool would be another one, or a new address of its service is taken."""
    # First, since another version may have announced all else in another way.
    if wanted.get("layout") != LAYOUT:
        raise ConfigError(
            "this is another version of supervisor, which can't take over what the running one has in memory:"
            " stop and start it for that"
        )
    own, before = identity(settings), wanted["identity"]
    changed = [name for name in before if before[name] != own.get(name)]
    if changed:
        raise ConfigError(f"{', '.join(changed)} changed since the pool was started: stop and start it for that")
    bind = pool_bind(settings)
    if bind and bind != wanted["bind"]:
        listen(bind).close()


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """In the preflight: have the arbiter hear what is wrong, in place of stderr. Elsewhere it changes nothing."""
    text = os.environ.get(PREFLIGHT_VARIABLE)
    try:
        yield
    except SupervisorError as error:
        out_fd = json.loads(text).get("out_fd") if text else None
        if out_fd is None:
            raise
        os.write(out_fd, json.dumps({"error": str(error)}).encode())
        raise SystemExit(error.exit_code) from None


def exec_preflight(settings: Settings, out_fd: int) -> NoReturn:
    """In a forked child: become the preflight. What handlers print goes to stderr, its finding to `out_fd`."""
    os.dup2(2, 1)
    os.set_inheritable(out_fd, True)
    wanted = {"layout": LAYOUT, "identity": identity(settings), "bind": pool_bind(settings), "out_fd": out_fd}
    exec_command(_command(), {**os.environ, PREFLIGHT_VARIABLE: json.dumps(wanted)})


# Handing over


def exec_successor(arbiter: Arbiter) -> NoReturn:
    """Replace this process's image. Raises OSError, and then all is as it was: nothing is closed before."""
    # Handlers end with the image, and the default of most signals is death: they wait for the successor's.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    signals = arbiter.loop.take_signals()
    arbiter.systemd.reloading()
    try:
        _exec(
            ReloadState(
                shared_fd=arbiter.shared.fd,
                lock_fd=arbiter.lock_fd,
                listener_fd=arbiter.control.listener.fileno(),
                workers=[slot for slot in arbiter.pool.slots.values() if slot.wanted or slot.living],
                services=list(arbiter.services.slots.values()),
                configured=arbiter.settings.pool.workers,
                redis=arbiter.redis,
                stack_fds=arbiter.stack_dumps.by_name,
                http=arbiter.http.state(),
                signals=signals,
            ),
            {**os.environ, **arbiter.systemd.environment()},
        )
    finally:
        arbiter.systemd.ready()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number in signals:
            signal.raise_signal(number)


def _exec(state: ReloadState, environment: dict[str, str]) -> NoReturn:
    """Every other descriptor is closed by the exec itself."""
    fd = create_memfd("state")
    try:
        os.write(fd, _encode(state))
        os.lseek(fd, 0, os.SEEK_SET)
        for kept in (fd, *state.fds):
            os.set_inheritable(kept, True)
        sys.stdout.flush()
        sys.stderr.flush()
        command = _command()
        os.execve(command[0], command, {**environment, STATE_VARIABLE: str(fd)})
    finally:
        os.close(fd)
        for kept in state.fds:
            os.set_inheritable(kept, False)


def read_state() -> ReloadState | None:
    """In the successor: what was handed over. Else None."""
    text = os.environ.pop(STATE_VARIABLE, None)
    if text is None:
        return None
    with os.fdopen(int(text), "rb") as file:
        state = _decode(file.read())
    for fd in state.fds:
        os.set_inheritable(fd, False)
    return state


def _command() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]


def _encode(state: ReloadState) -> bytes:
    def plain(value: object) -> object:
        if isinstance(value, State | ExitKind):
            return value.value
        raise TypeError(type(value).__name__)

    return json.dumps(asdict(state), default=plain).encode()


def _decode(data: bytes) -> ReloadState:
    found = json.loads(data)
    found["workers"] = [_slot(slot) for slot in found["workers"]]
    found["services"] = [_slot(slot) for slot in found["services"]]
    return ReloadState(**found)


def _slot(found: dict[str, Any]) -> Slot:
    left = found["last_exit"]
    if left is not None:
        left = Exit(**{**left, "kind": ExitKind(left["kind"])})
    return Slot(**{**found, "state": State(found["state"]), "history": History(**found["history"]), "last_exit": left})
