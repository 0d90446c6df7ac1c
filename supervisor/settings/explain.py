"""What is wrong with a value, in words: where it stands, what it is, what is allowed.

Turns pydantic's errors into lines for people. Secrets are left out, in errors and in `config show`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel

from supervisor.errors import did_you_mean
from supervisor.settings.masking import is_secret, masked
from supervisor.settings.model import Settings
from supervisor.settings.sources import dotted

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from supervisor.settings.sources import KeyPath, Layer


def explain(error: ValidationError, layer: Layer) -> list[str]:
    """One line for each thing that is wrong, with the place it was found in."""
    return [_line(details, layer) for details in error.errors(include_url=False)]


def shown(path: KeyPath, value: Any) -> str:
    """The value as TOML would write it, without its secrets."""
    if is_secret(path[-1]) and value:
        return '"***"'
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and "://" in value:
        value = masked(value)
    return json.dumps(value, ensure_ascii=False, default=str)


def _line(details: ErrorDetails, layer: Layer) -> str:
    path = tuple(str(part) for part in details["loc"])
    given = next((layer[path[:n]] for n in range(len(path), 0, -1) if path[:n] in layer), None)
    origin = given.origin if given else next((g.origin for p, g in layer.items() if p[: len(path)] == path), "default")
    if details["type"] == "extra_forbidden":
        return f"{origin}: {dotted(path)}: {_unknown(path)}"
    return f"{origin}: {dotted(path)} = {shown(path, details['input'])}: {_allowed(details, path)}"


def _unknown(path: KeyPath) -> str:
    known = list(_fields(path[:-1]))
    table = f"[{dotted(path[:-1])}]" if path[:-1] else "config.toml"
    near = did_you_mean(path[-1], known)
    return f"unknown key{near} (known in {table}: {', '.join(known)})"


def _allowed(details: ErrorDetails, path: KeyPath) -> str:
    field = _fields(path[:-1]).get(path[-1])
    if details["type"] == "string_pattern_mismatch" and field is not None and field.description:
        return f"must be {field.description}"
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if details["type"] == "model_type":
        return f"must be a table, [{dotted(path)}]"
    if details["type"] == "literal_error":
        allowed = [str(value) for value in get_args(field.annotation)] if field is not None else []
        return message + did_you_mean(str(details["input"]), allowed)
    return message


def _fields(table: KeyPath) -> dict[str, FieldInfo]:
    """The fields of the table at that path, none where keys are free."""
    model: type[BaseModel] | None = Settings
    parts = list(table)
    while parts and model is not None:
        field = model.model_fields.get(parts.pop(0))
        kind: Any = field.annotation if field is not None else None
        if get_origin(kind) is dict:  # [stream."name"]: the name itself is free
            kind = get_args(kind)[1]
            parts = parts[1:]
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return model.model_fields if model is not None else {}
