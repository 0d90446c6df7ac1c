"""The paths of a pool's files: control socket, lock, lease token and the embedded Redis."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from supervisor.errors import ConfigError
from supervisor.settings.model import Settings
from supervisor.text import path_text


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
    return paths_in(settings.state_dir.absolute())


def paths_in(state: Path) -> PoolPaths:
    """Return the paths of the pool with this state directory."""
    return PoolPaths(
        state_dir=state,
        control=state / "control.sock",
        lock=state / "lock",
        token=state / "token",
        exit_report=state / "exit_report.json",
        last_groups=state / "groups.json",
        slots=state / "slots",
        redis_dir=state / "redis",
        redis_socket=state / "redis.sock",
    )


def refuse_foreign(path: Path, project: Path | None, *, links_only: bool = False) -> None:
    """Raise ConfigError if another user has made a folder or link on the way to `path` in a folder like /tmp.

    What leads to `project` as well is trusted as the project's code is.
    """
    trusted = {*project.parents, project, *project.resolve().parents, project.resolve()} if project else set()
    for part in (path, *path.parents):
        if part not in trusted and _is_foreign(part, links_only):
            raise ConfigError(
                f"state_dir: {path_text(path)}: another user has made {path_text(part)}, in a folder where anybody may;"
                " choose a folder of your own, or set state_dir (or SUPERVISOR_STATE_DIR)"
            )


def _is_foreign(part: Path, links_only: bool) -> bool:
    try:
        own, place = os.lstat(part), os.stat(part.parent).st_mode
    except OSError:  # it does not exist yet
        return False
    is_shared = place & stat.S_ISVTX and place & stat.S_IWOTH
    if not is_shared or (links_only and not stat.S_ISLNK(own.st_mode)):
        return False
    return own.st_uid not in (0, os.geteuid())


def redis_url(settings: Settings) -> str:
    """Return the URL to connect to: the configured one, or that of the embedded server."""
    return settings.redis.url or f"unix://{quote(os.fsencode(pool_paths(settings).redis_socket))}"
