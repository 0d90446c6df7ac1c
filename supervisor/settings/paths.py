"""The paths of a pool's files: control socket, lock, lease token and the embedded Redis."""

import os
from dataclasses import dataclass
from pathlib import Path

from supervisor.settings.model import Settings

#: sun_path holds 108 bytes on Linux and 104 on macOS, with the closing NUL.
SOCKET_PATH_BYTES_MAX = 103


@dataclass(frozen=True, slots=True)
class PoolPaths:
    """The paths of one pool."""

    state_dir: Path
    control: Path
    lock: Path
    token: Path
    #: How the last pool has ended.
    exit_report: Path
    #: The groups of the last pool.
    last_groups: Path
    #: The folder with a lock file for each slot.
    slots: Path
    redis_dir: Path
    redis_socket: Path


def pool_paths(settings: Settings) -> PoolPaths:
    """Return the paths of the pool; creates nothing."""
    state = settings.state_dir.absolute()
    return PoolPaths(
        state_dir=state,
        control=_socket_path(state, "control.sock"),
        lock=state / "lock",
        token=state / "token",
        exit_report=state / "exit_report.json",
        last_groups=state / "groups.json",
        slots=state / "slots",
        redis_dir=state / "redis",
        redis_socket=_socket_path(state, "redis/redis.sock"),
    )


def redis_url(settings: Settings) -> str:
    """Return the URL to connect to: the configured one, or that of the embedded server."""
    return settings.redis.url or f"unix://{pool_paths(settings).redis_socket}"


def _socket_path(state: Path, name: str) -> Path:
    """Return `name` in the state directory, or in the runtime directory when that path is too long for a socket."""
    path = state / name
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
        return path
    import hashlib
    import tempfile

    digest = hashlib.sha256(os.fsencode(state)).hexdigest()[:16]
    runtime = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(runtime) / f"supervisor-{os.getuid()}-{digest}" / Path(name).name
