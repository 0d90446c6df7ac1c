"""Reads the sources of settings: config.toml with its line numbers, and the environment.

Each source becomes a flat mapping from path to `Given`. Values are not checked here, but an environment variable that
names no setting is an error.
"""

import contextlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor import compiled
from supervisor.errors import ConfigError
from supervisor.settings.model import Settings
from supervisor.settings.section import FreeTable, Table, Tables
from supervisor.text import did_you_mean, fault_text
from supervisor.values import KeyPath, Kind, kind_of

PREFIX = "SUPERVISOR_"
#: Names the file where no --config does.
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
#: Common names that are understood too; our own variables are stronger.
FOREIGN_VARIABLES: dict[str, KeyPath] = {"REDIS_URL": ("redis", "url")}
#: CONFIG_VARIABLE, the variable of `compiled`, and what is set by supervisord for its children, and by Kubernetes for
#: a Service whose name begins with "supervisor".
_NO_SETTINGS = re.compile(
    r"SUPERVISOR_(CONFIG|PURE_PYTHON)="
    r"|SUPERVISOR_(ENABLED|PROCESS_NAME|GROUP_NAME|SERVER_URL)="
    r"|SUPERVISOR_(\w+_)?SERVICE_(HOST|PORT)(_\w+)?="
    r"|SUPERVISOR_(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?="
    r"|SUPERVISOR_(\w+_)?PORT=\w+://"
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_TOML_LINE = re.compile(r"""\s*(?:(?P<table>\[[^\[].*\])|(?P<key>(?:"[^"]*"|'[^']*'|[^="'#\[])+)=)""")


@dataclass(frozen=True, slots=True)
class Given:
    """A value and where it was found, for `config show` and errors."""

    value: Any
    origin: str


Layer = dict[KeyPath, Given]


def dotted(path: KeyPath) -> str:
    """Return the path as TOML writes it: `stream."events:user_created".max_deliveries`."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False) for part in path)


def file_layer(path: Path) -> Layer:
    """Read the file. Raises ConfigError when it can't be read or is not TOML."""
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: can't be read: {reason}") from None
    except (ValueError, RecursionError) as error:  # a huge number raises a plain ValueError
        place = _TOML_PLACE.search(str(error))
        line = (place and place[1]) or str(text.count("\n") + 1)
        raise ConfigError(f"{path}:{line}: not valid TOML: {_TOML_PLACE.sub('', fault_text(error))}") from None
    lines = _line_numbers(text)
    layer: Layer = {}
    for key, value in leaves(tables):
        line = next((f":{lines[key[:n]]}" for n in range(len(key), 0, -1) if key[:n] in lines), "")
        layer[key] = Given(value, f"{path}{line}")
    return layer


def salvaged_layer(path: Path) -> Layer:
    """Find `state_dir`, which says where the pool is, in a file that is not valid TOML."""
    layer: Layer = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.lstrip().startswith("["):
                break
            with contextlib.suppress(tomllib.TOMLDecodeError):
                table = tomllib.loads(line)
                if "state_dir" in table:
                    layer["state_dir",] = Given(table["state_dir"], f"{path}:{number}")
    return layer


def leaves(tables: Mapping[str, Any], above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the path and value of everything that is not a table, and of empty tables."""
    for name, value in tables.items():
        path = (*above, name)
        if isinstance(value, dict) and value:
            yield from leaves(value, path)
        else:
            yield path, value


def environment_layer(environ: Mapping[str, str], below: Layer) -> tuple[Layer, list[str]]:
    """Read the environment; return its values, and an error for each variable that names no setting.

    The types of `[app]` keys, which are not declared, are those of their values in `below`.
    """
    known = _variables()
    layer: Layer = {}
    errors: list[str] = []
    for name, path in FOREIGN_VARIABLES.items():
        if text := environ.get(name):
            layer[path] = Given(text, f"environment {name}")
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or _NO_SETTINGS.match(f"{name}={text}"):
            continue
        found = known.get(name)
        if name.startswith(f"{PREFIX}APP__") and len(name) > len(f"{PREFIX}APP__"):
            path = tuple(name.removeprefix(PREFIX).lower().split("__"))
            found = path, kind_of(below[path].value if path in below else text)
        if found is None:
            errors.append(f"environment {name}: {_unknown(name, known)}")
        else:
            layer[found[0]] = Given(found[1].parse(text), f"environment {name}")
    return layer, errors


def _variables() -> dict[str, tuple[KeyPath, Kind]]:
    """Return all variables that name a setting, with the path and kind of the setting."""
    variables: dict[str, tuple[KeyPath, Kind]] = {}
    for name, (kind, _) in Settings.declared.items():
        if isinstance(kind, Tables | FreeTable):
            continue
        if isinstance(kind, Table):
            for key, inner in kind.section.declared.items():
                variables[f"{PREFIX}{name}__{key}".upper()] = (name, key), inner.kind
        else:
            variables[f"{PREFIX}{name}".upper()] = (name,), kind
    return variables


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    if name.startswith(f"{PREFIX}STREAM"):
        return "streams and their options are set in config.toml only"
    if name.startswith(f"{PREFIX}SCHEDULE_"):
        return "schedules are set in config.toml only"
    last = name.removeprefix(PREFIX).rpartition("__")[2]
    same_key = [other for other in known if other.endswith((f"__{last}", f"{PREFIX}{last}"))]
    others = [*known, CONFIG_VARIABLE, compiled.VARIABLE]
    near = f", did you mean {same_key[0]!r}?" if len(same_key) == 1 else did_you_mean(name, others)
    return f"there is no such setting{near} (`supervisor config show` lists all; sections are separated by __)"


def _line_numbers(text: str) -> dict[KeyPath, int]:
    """Return the line of each table and key. Lines of a multi-line string may add paths that do not exist."""
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), 1):
        match = _TOML_LINE.match(line)
        if match is None:
            continue
        try:
            if match["table"]:
                table = _only_path(tomllib.loads(match["table"]))
                lines.setdefault(table, number)
            else:
                lines.setdefault((*table, *_only_path(tomllib.loads(f"{match['key']}= {{}}"))), number)
        except tomllib.TOMLDecodeError:
            continue
    return lines


def _only_path(tables: dict[str, Any]) -> KeyPath:
    return next(leaves(tables))[0]
