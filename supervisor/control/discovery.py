"""Finds the pools of this user that run on this machine, by the control sockets that the kernel lists.

Only Linux has such a list; elsewhere no pool is found. A pool whose socket path was too long for the kernel is listed
without its folder, and so it is not found either.
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
_NAME = "control.sock"
#: The flag of a socket that accepts connections (linux/net.h: __SO_ACCEPTCON).
_LISTENING = 0x10000
#: The column of the path; it may have blanks itself.
_PATH_COLUMN = 7
#: More are not asked.
POOLS_MAX = 50
#: How long each may take to answer.
PATIENCE_S = 0.5


@dataclass(frozen=True, slots=True)
class RunningPool:
    """A pool that has answered."""

    pid: int
    #: Its config.toml as `path_text` writes it, by the path that led there; None: it has none.
    config: str | None
    paths: PoolPaths


def running_pools() -> list[RunningPool]:
    """Return the pools of this user, by their pids."""
    found = []
    for state_dir in list(_state_dirs())[:POOLS_MAX]:
        paths = paths_in(state_dir)
        with contextlib.suppress(SupervisorError):
            told = request(paths, "status", patience_s=PATIENCE_S)
            found.append(RunningPool(told["pid"], told.get("config"), paths))
    return sorted(found, key=lambda pool: pool.pid)


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
        with contextlib.suppress(OSError):
            if path.name == _NAME and path.is_absolute() and os.geteuid() in (0, path.lstat().st_uid):
                yield path.parent
