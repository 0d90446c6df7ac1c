"""What is wrong with a value, in words: where it stands, what it is, what is allowed.

Turns pydantic's errors into lines for people. Secrets are left out, in errors and in `config show`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel

from supervisor.settings.masking import is_secret, masked
from supervisor.settings.model import Settings
from supervisor.settings.sources import dotted
from supervisor.text import did_you_mean

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

    from supervisor.settings.sources import KeyPath, Layer

#: How pydantic calls what is wrong, and what a value must be instead.
_LIMITS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
}
#: The same by the beginning of the name.
_KINDS = {
    "int_": "a whole number",
    "float_": "a number",
    "bool_": "true or false",
    "string_": "text, in quotes",
    "path_": "a path, in quotes",
    "list_": 'a list, such as ["handlers"]',
    "dict_": "a table",
}


def error_lines(error: ValidationError, layer: Layer) -> list[str]:
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
    near = did_you_mean(path[-1], known) or _elsewhere(path)
    return f"unknown key{near} (known in {table}: {', '.join(known)})"


def _elsewhere(path: KeyPath) -> str:
    """For a key that is right and stands in the wrong table: which is its own."""
    tables = [path[:2], *((section,) for section in _fields(()))]
    found = next((table for table in tables if table != path[:-1] and path[-1] in _fields(table)), None)
    return f", it belongs to [{dotted(found)}]" if found else ""


def _allowed(details: ErrorDetails, path: KeyPath) -> str:
    if details["type"] == "model_type":
        return f"must be a table, [{dotted(path)}]"
    # An element of a list is told about as the list.
    at = next((n for n in range(len(path), 0, -1) if path[n - 1] in _fields(path[: n - 1])), 0)
    return plain(details, _fields(path[: at - 1])[path[at - 1]] if at else None)


def plain(details: ErrorDetails, field: FieldInfo | None) -> str:
    """What a value must be, in words that need no knowledge of pydantic."""
    kind, context = details["type"], details.get("ctx", {})
    if kind == "literal_error" and field is not None:
        allowed = [str(value) for value in get_args(field.annotation)]
        return f"must be {_one_of(allowed)}{did_you_mean(str(details['input']), allowed)}"
    if kind == "value_error":  # our own words
        return details["msg"].removeprefix("Value error, ")
    if field is not None and field.description:
        return f"must be {field.description}"
    if kind in _LIMITS:
        numbers = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
        return f"must be {_range(field) or _LIMITS[kind].format(**numbers)}"
    text = next((text for start, text in _KINDS.items() if kind.startswith(start)), "")
    if kind.startswith(("int_", "float_")):
        text = f"{text} {_range(field)}".rstrip()
    return f"must be {text}" if text else details["msg"]


def _range(field: FieldInfo | None) -> str:
    """`between 0 and 256`, where both ends are set."""
    limits = {}
    for one in _constraints(field) if field else ():
        limits.update({name: getattr(one, name) for name in ("ge", "le") if hasattr(one, name)})
    return "between {ge:,} and {le:,}".format(**limits) if len(limits) == 2 else ""  # noqa: PLR2004 - both ends


def _constraints(field: FieldInfo) -> list[Any]:
    """The field's own, and for `Annotated[...] | None` those of what it holds."""
    found = list(field.metadata)
    for part in get_args(field.annotation):
        found += [one for inner in getattr(part, "__metadata__", ()) for one in getattr(inner, "metadata", ())]
    return found


def _one_of(words: list[str]) -> str:
    quoted = [json.dumps(word) for word in words]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]]) if quoted[1:] else quoted[0]


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
