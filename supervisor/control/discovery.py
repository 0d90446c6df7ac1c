"""Finds the pools of this user that run on this machine, by the control sockets that the kernel lists.

Only Linux has such a list; elsewhere no pool is found. A socket whose path is too long for the kernel is listed by the
path through a descriptor, and the process with that descriptor leads to the folder.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supervisor.control.client import request
from supervisor.errors import SupervisorError
from supervisor.settings.paths import PoolPaths, paths_in

_SOCKETS = Path("/proc/net/unix")
_DESCRIPTORS = Path("/proc/self/fd")
_NAME = "control.sock"
#: The flag of a socket that accepts connections (linux/net.h: __SO_ACCEPTCON).
_LISTENING = 0x10000
#: The column of the path; it may have blanks itself.
_PATH_COLUMN = 7
#: More are not asked.
POOLS_MAX = 50
#: How long each may take to answer.
PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class RunningPool:
    """A pool that has answered."""

    pid: int
    #: Its config.toml as `path_text` writes it, by the path that led there; None: it has none.
    config: str | None
    paths: PoolPaths


def running_pools() -> list[RunningPool]:
    """Return the pools of this user, by their pids."""
    asked = map(_asked, list(dict.fromkeys(_state_dirs()))[:POOLS_MAX])
    return sorted((pool for pool in asked if pool is not None), key=lambda pool: pool.pid)


def pool_with_token(token: str) -> RunningPool | None:
    """Return the running pool of this user that keeps `token` in its state directory; None if none is found."""
    for state_dir in dict.fromkeys(_state_dirs()):
        with contextlib.suppress(OSError, ValueError):
            if paths_in(state_dir).token.read_text().strip() == token and (pool := _asked(state_dir)):
                return pool
    return None


def _asked(state_dir: Path) -> RunningPool | None:
    paths = paths_in(state_dir)
    with contextlib.suppress(SupervisorError):
        status = request(paths, "status", patience_s=PATIENCE_S)
        return RunningPool(status["pid"], status.get("config"), paths)
    return None


def _state_dirs() -> Iterator[Path]:
    """Yield the folders of listening sockets with our name that belong to this user."""
    try:
        lines = _SOCKETS.read_bytes().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        columns = line.split(maxsplit=_PATH_COLUMN)
        if len(columns) <= _PATH_COLUMN or not int(columns[3], 16) & _LISTENING:
            continue
        path = Path(os.fsdecode(columns[_PATH_COLUMN]))
        if path.name == _NAME and path.is_absolute():
            yield from filter(_is_ours, _behind_descriptor(path) if _DESCRIPTORS in path.parents else [path.parent])


def _behind_descriptor(path: Path) -> Iterator[Path]:
    """Yield the folders that are open under this descriptor in any process of this user."""
    number = path.parent.name
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                yield (process / "fd" / number).readlink()


def _is_ours(state_dir: Path) -> bool:
    try:
        return os.geteuid() in (0, (state_dir / _NAME).lstat().st_uid)
    except OSError:
        return False
