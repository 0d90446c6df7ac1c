"""Dumps models as JSON has them, in the form that the same model reads. Pure."""

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Secret, SecretBytes, SecretStr, TypeAdapter
from pydantic_core import to_jsonable_python


def dump(
    adapter: TypeAdapter[Any],
    message: Any,
    *,
    include: set[str] | None = None,
    round_trip: bool = True,
    warnings: bool | Literal["error"] = False,
) -> Any:
    """Return the message with JSON's types, under the names that it is stored with.

    `round_trip` leaves computed fields out, since their model computes them again. Raises what pydantic raises.
    """
    options: dict[str, Any] = {"mode": "json", "by_alias": True, "round_trip": round_trip, "warnings": warnings}
    if include is not None:
        options["include"] = include
    if isinstance(message, BaseModel):  # a model may have a `model_dump` of its own
        return message.model_dump(**options)
    dumped = adapter.dump_python(message, **options)
    if not hasattr(type(message), "__pydantic_validator__"):  # times of plain dataclasses are written as Python does
        times = {one.name: getattr(message, one.name) for one in dataclasses.fields(message) if one.name in dumped}
        dumped |= {name: time.isoformat() for name, time in times.items() if type(time) is datetime}
    return dumped


def mend(value: Any, dumped: Any, *, nested: bool) -> Any:
    """Return `dumped` with what pydantic's own form loses of `value`.

    Secrets are written as they are, not as asterisks. A nested field is written under its name where validation does
    not look for its alias.
    """
    if isinstance(value, SecretStr | SecretBytes | Secret):
        return _secret(value, dumped)
    if isinstance(dumped, dict):
        if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
            return _mended_fields(value, dumped, nested=nested)
        if isinstance(value, Mapping) and len(value) == len(dumped):
            pairs = zip(dumped.items(), value.values(), strict=True)
            return {key: mend(inner, item, nested=True) for (key, item), inner in pairs}
    if isinstance(dumped, list):
        try:
            items = list(value)
        except TypeError:  # written by a serializer of its own
            return dumped
        if len(items) == len(dumped):
            return [mend(inner, item, nested=True) for inner, item in zip(items, dumped, strict=True)]
    return dumped


def reveal(value: Any) -> Any:
    """Return the value in a secret, and any other value as it is."""
    return value.get_secret_value() if isinstance(value, SecretStr | SecretBytes | Secret) else value


def _secret(value: Any, dumped: Any) -> Any:
    if dumped != "**********" and not (isinstance(dumped, str) and dumped == str(value)):
        return dumped  # written by a serializer of its own
    inner = value.get_secret_value()
    if isinstance(inner, bytes):
        try:
            return inner.decode()
        except UnicodeDecodeError:
            return inner
    return to_jsonable_python(inner)


def _mended_fields(value: Any, dumped: dict[str, Any], *, nested: bool) -> dict[str, Any]:
    mended: dict[str, Any] = {}
    names = {_key(about, name): (name, about) for name, about in _fields(value).items()}
    for key, item in dumped.items():
        name, about = names.get(key, (key, None))
        inner = getattr(value, name, None)
        mended[name if nested and _is_hidden(about, name, key) else key] = mend(inner, item, nested=True)
    return mended


def _fields(value: Any) -> Mapping[str, Any]:
    if isinstance(value, BaseModel):
        return type(value).model_fields
    own: Mapping[str, Any] | None = getattr(type(value), "__pydantic_fields__", None)
    return own if own is not None else {one.name: None for one in dataclasses.fields(value)}


def _key(about: Any, name: str) -> str:
    return getattr(about, "serialization_alias", None) or name


def _is_hidden(about: Any, name: str, key: str) -> bool:
    """Return whether validation does not look under `key` for the field."""
    alias = getattr(about, "validation_alias", None)
    return key not in (name if alias is None else alias, name)
