"""The settings from flags, environment, config.toml and defaults, the strongest first.

1. Every value keeps its origin, for `config show` and for errors.
2. All errors are reported at once, as one ConfigError; nothing is guessed and nothing ignored.
3. Reads one file and the environment; imports no handlers and opens no connection.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from supervisor.errors import ConfigError
from supervisor.settings.model import Settings
from supervisor.settings.paths import refuse_foreign
from supervisor.settings.sources import (
    CONFIG_VARIABLE,
    Given,
    Layer,
    dotted,
    environment_layer,
    file_layer,
    leaves,
    salvaged_layer,
)
from supervisor.values import KeyPath, WrongValue

CONFIG_NAME = "config.toml"
STATE_DIR: Path = Settings.declared["state_dir"].default()
#: `sqlite+aiosqlite:///` and a path that is not absolute.
_RELATIVE_FILE = re.compile(r"^(sqlite(?:\+\w+)?:///)([^/:?].*)$")
#: Settings that the command line can set -> the flag.
FLAGS = {
    "pool.workers": "--workers",
    "redis.url": "--redis",
    "handlers": "--handlers",
    "api.bind": "--bind",
    "api.enabled": "--no-api",
}


@dataclass(frozen=True)
class Loaded:
    """Settings, and where they came from."""

    settings: Settings
    #: The file that was read, by the path that leads to it, links included; None: there is none.
    path: Path | None
    layer: Layer
    #: The folder of config.toml, or the working directory: handlers are importable from here. Links are resolved, so
    #: that one that is switched later does not mix two releases in one process.
    root: Path

    @property
    def real_path(self) -> Path | None:
        """The file as it was found when it was read, whatever happens to links on the way to it."""
        return self.root / self.path.name if self.path else None

    @cached_property
    def origins(self) -> dict[str, str]:
        """Dotted key -> `default`, `<path>:<line>`, `environment SUPERVISOR_X` or `flag --workers`."""
        keys = [path for path, value in leaves(self.settings.as_dict()) if value != {}]
        return {dotted(path): self.layer[path].origin if path in self.layer else "default" for path in keys}


def load(
    config: Path | None = None,
    flags: Mapping[str, Any] = MappingProxyType({}),
    environ: Mapping[str, str] = os.environ,
    *,
    look: bool = True,
) -> Loaded:
    """Read the settings. `flags` maps dotted keys to values, e.g. `{"pool.workers": 4}`; None means not given.

    Without `config`, SUPERVISOR_CONFIG names the file, else ./config.toml is read where it exists; no file with
    `look` = False. Raises ConfigError with every unknown key, wrong value and mistyped variable, each with its place.
    """
    path = config_path(config, environ) if look or config else None
    loaded, errors = _load(path, file_layer(path) if path else {}, environ, flags)
    if errors:
        raise ConfigError("\n".join([f"{len(errors)} errors in the configuration:", *errors] if errors[1:] else errors))
    return loaded


def load_anyway(config: Path | None = None, environ: Mapping[str, str] = os.environ) -> tuple[Loaded, list[str]]:
    """Return the settings with defaults in place of what is wrong, and one line for each error.

    For commands that ask a running pool: a mistake made after the pool was started must not keep them from finding
    it. Raises ConfigError only when there is no such file.
    """
    path = config_path(config, environ)
    layer: Layer = {}
    unreadable: list[str] = []
    if path is not None:
        try:
            layer = file_layer(path)
        except ConfigError as error:
            unreadable, layer = [str(error)], salvaged_layer(path)
    loaded, errors = _load(path, layer, environ)
    return loaded, unreadable + errors


def _load(
    path: Path | None, layer: Layer, environ: Mapping[str, str], flags: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Loaded, list[str]]:
    from_environment, errors = environment_layer(environ, layer)
    layer.update(from_environment)
    layer.update(_flag_layer(flags))
    problems: list[WrongValue] = []
    root = Path(os.path.realpath(path.parent if path else working_dir(environ)))
    settings = Settings.collect((), _tree(layer, root, problems), problems)
    if problems:
        from supervisor.settings.validation_errors import error_line

        errors += [error_line(problem, layer) for problem in problems]
    return Loaded(settings, path, layer, root), errors


def config_path(config: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file to read, None where there is none. Raises ConfigError when the named one does not exist."""
    named = environ.get(CONFIG_VARIABLE)
    if config is None and not named:
        here = working_dir(environ) / CONFIG_NAME
        return here if here.is_file() else None
    origin = f"environment {CONFIG_VARIABLE}: " if config is None else ""
    try:
        place = config or Path(str(named)).expanduser()
    except RuntimeError:
        raise ConfigError(f"{origin}{named}: there is no such user") from None
    path = place / CONFIG_NAME if place.is_dir() else place
    if not path.is_file():
        raise ConfigError(f"{origin}{path}: there is no such file; `supervisor init` makes one")
    return path if path.is_absolute() else working_dir(environ) / path


def working_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the working directory by the path that the shell went, so that a link in it is kept.

    Raises ConfigError when it does not exist any more.
    """
    by_shell = environ.get("PWD", "")
    try:
        if os.path.isabs(by_shell) and os.path.samefile(by_shell, os.curdir):
            return Path(by_shell)
    except OSError:
        pass
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the working directory can't be found ({error.strerror}): change to one that exists, or give --config FILE"
        ) from None


def _flag_layer(flags: Mapping[str, Any]) -> Layer:
    return {
        tuple(key.split(".")): Given(value, f"flag {FLAGS.get(key, key)}")
        for key, value in flags.items()
        if value is not None
    }


#: Paths in `[api]`.
_API_FILES = ("token_file", "read_token_file")


def _tree(layer: Layer, root: Path, problems: list[WrongValue]) -> dict[str, Any]:
    """Return the layer as nested tables, with absolute paths; those that lead nowhere are added to `problems`."""
    tree: dict[str, Any] = {}
    for path, given in layer.items():
        table = _table(tree, path[:-1])
        if table is not None:
            table[path[-1]] = given.value
        else:
            problems.append(
                WrongValue(path, given.value, f"must be left out, since {dotted(path[:-1])} is not a table")
            )
    state_dir = tree.get("state_dir", STATE_DIR)
    if isinstance(state_dir, str | Path):
        place = root / (_expanded(("state_dir",), state_dir, problems) or STATE_DIR)
        refuse_foreign(Path(os.path.abspath(place)), root, links_only=True)
        tree["state_dir"] = Path(os.path.realpath(place))
    outbox = tree.get("outbox")
    if isinstance(outbox, dict) and isinstance(outbox.get("url"), str):
        outbox["url"] = _RELATIVE_FILE.sub(lambda found: f"{found[1]}{root.absolute() / found[2]}", outbox["url"])
    api = tree.get("api")
    for key in _API_FILES:
        if isinstance(api, dict) and isinstance(name := api.get(key), str) and name:
            expanded = _expanded(("api", key), name, problems)
            api[key] = str(root / expanded) if expanded else ""
    return tree


def _expanded(key: KeyPath, path: str | Path, problems: list[WrongValue]) -> Path | None:
    """Return the path with the home folder in place of `~`; on an error add it to `problems` and return None."""
    try:
        if "\0" not in str(path):
            return Path(path).expanduser()
        allowed = "must be a path, which has no NUL character"
    except RuntimeError:
        allowed = "must be a path; the user after ~ has no home folder"
    problems.append(WrongValue(key, path, allowed))
    return None


def _table(tree: dict[str, Any], path: KeyPath) -> dict[str, Any] | None:
    """Return the table at `path`, created where it is missing; None where a plain value is in its place."""
    table: Any = tree
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            return None
    found: dict[str, Any] = table
    return found
