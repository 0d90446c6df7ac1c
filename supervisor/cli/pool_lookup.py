"""Finds the pool that a command means: the one of this configuration, wherever it keeps its state.

A pool keeps its state directory for its whole life. When its configuration lies behind a link (`current/config.toml`)
that was switched to another release since, the state directory of the new release is another one. The pool is then
found by the path of its configuration.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from supervisor.errors import NotRunningError
from supervisor.text import path_text

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded

#: How many other pools are named.
NAMED_MAX = 5


def follow_running(loaded: Loaded) -> Loaded:
    """Return the settings with the state directory of the pool that was started with this configuration."""
    from supervisor.control.client import has_socket
    from supervisor.control.discovery import running_pools
    from supervisor.settings.paths import pool_paths

    if loaded.path is None or has_socket(pool_paths(loaded.settings)):
        return loaded
    same = [pool for pool in running_pools() if pool.config == path_text(loaded.path)]
    if len(same) != 1:
        return loaded
    state_dir = same[0].paths.state_dir
    text = f"the pool of {path_text(loaded.path)} (pid {same[0].pid}) keeps its state in {path_text(state_dir)}"
    click.echo(text, err=True)
    return replace(loaded, settings=loaded.settings.changed(state_dir=state_dir))


def require_pool(loaded: Loaded) -> None:
    """Raise NotRunningError, with what to do about it, when there is no control socket."""
    from supervisor.control.client import has_socket, not_running
    from supervisor.settings.paths import pool_paths

    paths = pool_paths(loaded.settings)
    if not has_socket(paths):
        raise NotRunningError(f"{not_running(paths)}\n{down_hint(loaded)}")


def down_hint(loaded: Loaded) -> str:
    """Return what to do when no pool of this configuration runs: ask another one, go elsewhere, or start it."""
    from supervisor.control.discovery import running_pools

    others = running_pools()
    lines = []
    if others:
        lines.append("these pools of yours run on this machine:")
    for pool in others[:NAMED_MAX]:
        place = f"--config {shlex.quote(pool.config)}" if pool.config else ""
        where = place or f"state_dir {path_text(pool.paths.state_dir)}, without a config.toml"
        lines.append(f"  pid {pool.pid}: {where}")
    if len(others) > NAMED_MAX:
        lines.append(f"  and {len(others) - NAMED_MAX} more")
    if loaded.path is None:
        above = next((folder for folder in loaded.root.parents if (folder / "config.toml").is_file()), None)
        elsewhere = f", but one in {path_text(above)}" if above else ""
        lines.append(f"there is no config.toml in {path_text(loaded.root)}{elsewhere}; --config FILE names another one")
    if others:
        lines.append("if none of these is meant:")
    return "\n".join([*lines, "`supervisor start` starts this folder's pool"])
