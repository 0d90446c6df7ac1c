"""The paths of a pool's files: control socket, lock, lease token and the embedded Redis."""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from supervisor.settings.model import Settings


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


def redis_url(settings: Settings) -> str:
    """Return the URL to connect to: the configured one, or that of the embedded server."""
    return settings.redis.url or f"unix://{quote(os.fsencode(pool_paths(settings).redis_socket))}"
