"""The state directory of a running pool: one folder for the pool's life, whatever its path means later.

A link on the path may be switched to another release, and the folder itself may be moved. So it is opened once, and the
arbiter and the children that it forks reach their files through this descriptor. Where the system has no paths through
descriptors (macOS), the path of the start is used.
"""

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supervisor.arbiter.locks import lease_token, lock_state_dir, unusable
from supervisor.arbiter.started_from import StartedFrom
from supervisor.errors import ConfigError, SupervisorError
from supervisor.log import Limiter
from supervisor.settings.paths import PoolPaths, paths_in, refuse_foreign
from supervisor.text import path_text

_DESCRIPTORS = Path("/proc/self/fd")
#: What the kernel adds to the path of an open folder that was removed.
_REMOVED = " (deleted)"


class StateDir:
    """The open state directory."""

    def __init__(self, path: Path, fd: int | None = None, *, project: Path | None = None) -> None:
        """Open the folder at `path`, created where it is missing; `fd` is one that is open already.

        `project` is the folder of the code that runs here, whoever made it. Raises ConfigError.
        """
        self.path = path
        self._project = project
        self.fd = _open(path, project) if fd is None else fd

    @property
    def paths(self) -> PoolPaths:
        """The paths of the pool's files, through the descriptor; `state_dir` is the path for people."""
        through = _DESCRIPTORS / str(self.fd)
        return replace(paths_in(through), state_dir=self.path) if through.exists() else paths_in(self.path)

    @property
    def identity(self) -> list[int]:
        """Device and inode of the folder."""
        return identity_of(self.fd)

    @property
    def was_removed(self) -> bool:
        """True if the folder no longer exists under any path."""
        try:
            return os.readlink(_DESCRIPTORS / str(self.fd)).endswith(_REMOVED)
        except OSError:
            return not self.path.is_dir()

    def create_again(self, lock_fd: int) -> None:
        """Create and lock the folder again at its path; both get the descriptors that they had.

        Raises AlreadyRunningError if another pool has this path, and ConfigError.
        """
        new = StateDir(self.path, project=self._project)
        try:
            new_lock_fd = lock_state_dir(new.paths)
            os.dup2(new_lock_fd, lock_fd, inheritable=False)
            os.close(new_lock_fd)
            os.dup2(new.fd, self.fd, inheritable=False)
        finally:
            os.close(new.fd)


@dataclass(frozen=True, slots=True)
class PoolLocation:
    """The open state directory of a pool, its lock, and where the pool was started from."""

    state_dir: StateDir
    #: Holds the lock of the state directory.
    lock_fd: int
    started_from: StartedFrom

    def restore_state_dir(self, token: str, log: Any, limiter: Limiter) -> None:
        """Create the state directory again if it was removed, unless another pool uses its path by now."""
        if not self.state_dir.was_removed:
            return
        try:
            self.state_dir.create_again(self.lock_fd)
            lease_token(self.state_dir.paths, token)
        except SupervisorError as error:
            if limiter.held_back("state directory lost") is not None:
                log.error("state directory lost", error=str(error))
        else:
            log.error("state directory created again", path=path_text(self.state_dir.path))


def identity_of(folder: Path | int) -> list[int]:
    """Return device and inode of a folder; empty when there is none."""
    with contextlib.suppress(OSError):
        status = os.stat(folder)
        return [status.st_dev, status.st_ino]
    return []


def _open(path: Path, project: Path | None) -> int:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise unusable(path, error) from None
    try:
        refuse_foreign(path, project)
    except ConfigError:
        os.close(fd)
        raise
    return fd
