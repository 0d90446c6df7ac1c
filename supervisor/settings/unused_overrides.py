"""Finds overrides in config.toml for streams and groups without a handler: mostly mistyped names."""

from collections.abc import Iterable

from supervisor.settings.load import Loaded
from supervisor.settings.sources import dotted
from supervisor.text import did_you_mean
from supervisor.values import KeyPath


def unused_overrides(loaded: Loaded, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each such override. `pairs` has (stream, group) of each handler."""
    groups: dict[str, list[str]] = {}
    for stream, group in pairs:
        groups.setdefault(stream, []).append(group)
    lines = []
    for stream, override in loaded.settings.stream.items():
        if stream not in groups:
            lines.append(_line(loaded, ("stream", stream), f"no handler reads it{did_you_mean(stream, groups)}"))
            continue
        for group in override.group:
            if group not in groups[stream]:
                hint = did_you_mean(group, groups[stream])
                lines.append(_line(loaded, ("stream", stream, "group", group), f"no handler is in it{hint}"))
    return lines


def _line(loaded: Loaded, table: KeyPath, text: str) -> str:
    name = dotted(table)
    origin = next((where for key, where in loaded.origins.items() if key.startswith(f"{name}.")), str(loaded.path))
    return f"{origin}: [{name}]: {text}"
