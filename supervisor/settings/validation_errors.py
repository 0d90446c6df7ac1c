"""Words errors of settings: where the value is, what it is, what is allowed. Secrets are never shown."""

import json
from pathlib import Path
from typing import Any

from supervisor.settings.masking import is_secret, masked
from supervisor.settings.model import Settings
from supervisor.settings.section import Section, Table, Tables
from supervisor.settings.sources import Layer, dotted
from supervisor.text import did_you_mean
from supervisor.values import KeyPath, WrongValue


def error_line(problem: WrongValue, layer: Layer) -> str:
    """Return a line about the problem with the place of the value."""
    path, name = problem.path, dotted(problem.path)
    given = next((layer[path[:n]] for n in range(len(path), 0, -1) if path[:n] in layer), None)
    origin = given.origin if given else next((g.origin for p, g in layer.items() if p[: len(path)] == path), "default")
    if problem.allowed:
        return f"{origin}: {name} = {shown(path, problem.value)}: {problem.allowed}"
    known = list(_fields(path[:-1]))
    table = f"[{dotted(path[:-1])}]" if path[:-1] else "config.toml"
    hint = _right_table(path) or did_you_mean(path[-1], known)
    return f"{origin}: {name}: unknown key{hint} (known in {table}: {', '.join(known)})"


def shown(path: KeyPath, value: Any) -> str:
    """Return the value as TOML writes it, with its secrets hidden."""
    if is_secret(path[-1]) and value:
        return '"***"'
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and "://" in value:
        value = masked(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _right_table(path: KeyPath) -> str:
    """Return a hint at the table that has the key, if one does."""
    tables = [path[:2], *((section,) for section in Settings.declared)]
    right = next((table for table in tables if table != path[:-1] and path[-1] in _fields(table)), None)
    return f", it belongs to [{dotted(right)}]" if right else ""


def _fields(table: KeyPath) -> dict[str, Any]:
    """Return the keys of the table at that path; empty where keys are free."""
    section: type[Section] = Settings
    parts = iter(table)
    for part in parts:
        kind = section.declared[part].kind if part in section.declared else None
        if not isinstance(kind, Table) or (isinstance(kind, Tables) and next(parts, None) is None):
            return {}
        section = kind.section
    return section.declared
