"""The settings from flags, environment, config.toml and defaults, in that order of strength.

1. Every value keeps its origin, for `config show` and for errors.
2. All that is wrong is told at once, as one ConfigError; nothing is guessed and nothing ignored.
3. Reads one file and the environment; imports no handlers and opens no connection.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from supervisor.errors import ConfigError
from supervisor.settings.model import Settings
from supervisor.settings.sources import (
    Given,
    KeyPath,
    Layer,
    dotted,
    environment_layer,
    file_layer,
    leaves,
    salvaged_layer,
)
from supervisor.settings.validation_errors import error_lines

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG_NAME = "config.toml"
#: How the command line calls the settings that it can set.
FLAGS = {
    "pool.workers": "--workers",
    "redis.url": "--redis",
    "handlers": "--handlers",
    "api.bind": "--bind",
    "api.enabled": "--no-api",
}


@dataclass(frozen=True)
class Loaded:
    """Settings, the file that was read (None: there is none) and the origin of each dotted key."""

    settings: Settings
    path: Path | None
    #: `default`, `<path>:<line>`, `environment SUPERVISOR_X` or `flag --workers`.
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The folder of config.toml, or the working directory: handlers are importable from here."""
        return self.path.parent if self.path else Path.cwd()


def load(
    config: Path | None = None,
    flags: Mapping[str, Any] = MappingProxyType({}),
    environ: Mapping[str, str] = os.environ,
) -> Loaded:
    """Read the settings. `flags` maps dotted keys to values, e.g. `{"pool.workers": 4}`; None means not given.

    Without `config`, ./config.toml is read where it exists. Raises ConfigError with every unknown key,
    wrong value and mistyped variable, each with its place.
    """
    path = _config_path(config)
    layer = file_layer(path) if path else {}
    from_environment, errors = environment_layer(environ, layer)
    layer.update(from_environment)
    layer.update(_flag_layer(flags))
    root = path.parent if path else Path.cwd()
    try:
        settings = Settings.model_validate(_tree(layer, root), strict=True)
    except ValidationError as error:
        errors += error_lines(error, layer)
    if errors:
        raise ConfigError("\n".join([f"{len(errors)} errors in the configuration:", *errors] if errors[1:] else errors))
    return Loaded(settings, path, _origins(settings, layer))


def load_anyway(config: Path | None = None, environ: Mapping[str, str] = os.environ) -> tuple[Loaded, list[str]]:
    """The settings without what is wrong with them, and what that is, one line each.

    For those who ask a pool that runs: they need to find it, and a mistake made since it was started
    must not keep them from it. Raises ConfigError only when there is no such file.
    """
    path = _config_path(config)
    errors: list[str] = []
    layer: Layer = {}
    if path is not None:
        try:
            layer = file_layer(path)
        except ConfigError as error:
            errors.append(str(error))
            layer = salvaged_layer(path)
    from_environment, unknown = environment_layer(environ, layer)
    layer.update(from_environment)
    errors += unknown
    root = path.parent if path else Path.cwd()
    while True:
        try:
            settings = Settings.model_validate(_tree(layer, root), strict=True)
        except ValidationError as error:
            errors += error_lines(error, layer)
            wrong = [tuple(str(part) for part in details["loc"]) for details in error.errors()]
            right = {key: given for key, given in layer.items() if not any(_touches(key, path) for path in wrong)}
            if len(right) == len(layer):
                raise ConfigError("\n".join(errors)) from None
            layer = right
        else:
            return Loaded(settings, path, _origins(settings, layer)), list(dict.fromkeys(errors))


def _touches(key: KeyPath, wrong: KeyPath) -> bool:
    """The key is what is wrong, a part of it, or the table that it is in."""
    shorter = min(len(key), len(wrong))
    return key[:shorter] == wrong[:shorter]


def _config_path(config: Path | None) -> Path | None:
    if config is not None:
        found = config / CONFIG_NAME if config.is_dir() else config
        if not found.is_file():
            raise ConfigError(f"{found}: there is no such file; `supervisor init` makes one")
        return found.absolute()
    here = Path.cwd() / CONFIG_NAME
    return here if here.is_file() else None


def _flag_layer(flags: Mapping[str, Any]) -> Layer:
    return {
        tuple(key.split(".")): Given(value, f"flag {FLAGS.get(key, key)}")
        for key, value in flags.items()
        if value is not None
    }


def _tree(layer: Layer, root: Path) -> dict[str, Any]:
    """The layer as nested tables, with `state_dir` as an absolute path."""
    tree: dict[str, Any] = {}
    for path, given in layer.items():
        table = _table(tree, path[:-1])
        if table is not None:
            table[path[-1]] = given.value
    state_dir = tree.get("state_dir", ".supervisor")
    if isinstance(state_dir, str | Path):
        tree["state_dir"] = root / Path(state_dir).expanduser()
    return tree


def _table(tree: dict[str, Any], path: KeyPath) -> dict[str, Any] | None:
    """The table at `path`, made where it is missing; None where a plain value stands in its way."""
    table: Any = tree
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return None
    found: dict[str, Any] = table
    return found


def _origins(settings: Settings, layer: Layer) -> dict[str, str]:
    found = leaves(settings.model_dump(exclude_none=True))
    return {dotted(path): layer[path].origin if path in layer else "default" for path, value in found if value != {}}
