"""Compares what was published with what a handler would get. Pure."""

import dataclasses
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

#: The comparison of a class that defines none: two of its instances are never equal.
_NOT_COMPARED: Any = object.__eq__


def same(given: Any, got: Any) -> bool:  # noqa: PLR0911 - one case for each kind of value
    """Return whether a value came back as it was: of the same type, and equal where its type can be compared."""
    if given is got:
        return True
    if isinstance(given, BaseModel):
        return type(given) is type(got) and not changed_fields(given, got)
    if isinstance(given, Mapping) and isinstance(got, Mapping):
        return given.keys() == got.keys() and all(same(value, got[key]) for key, value in given.items())
    if isinstance(given, list | tuple | deque):
        return isinstance(given, type(got)) and len(given) == len(got) and all(map(same, given, got))
    if isinstance(given, set | frozenset):
        if not isinstance(given, type(got)) or len(given) != len(got):
            return False
        return given == got or all(any(same(one, other) for other in got) for one in given - got)
    if dataclasses.is_dataclass(given):
        return type(given) is type(got) and not changed_fields(given, got)
    return _same_value(given, got)


def changed_fields(given: Any, got: Any) -> list[str]:
    """Return the names of the fields of a model or dataclass that did not come back as they were."""
    return [name for name in _field_names(given) if not same(getattr(given, name, None), getattr(got, name, None))]


def _field_names(value: Any) -> Iterable[str]:
    if isinstance(value, BaseModel):
        # A default was never validated (`limit: float = 5`), and what is excluded comes back as its default.
        fields, given = type(value).model_fields, value.model_fields_set
        own = [name for name, about in fields.items() if name in given and not about.exclude]
        return [*own, *(value.model_extra or ())]
    return [one.name for one in dataclasses.fields(value)]


def equals(given: Any, got: Any) -> bool:
    """Return whether two values are equal, or both NaN. Values that can't be compared are if their types are."""
    try:
        if type(given).__eq__ is _NOT_COMPARED:
            return type(given) is type(got)
        return bool(given == got) or (given != given and got != got)  # noqa: PLR0124 - NaN
    except Exception:
        return type(given) is type(got)


def _same_value(given: Any, got: Any) -> bool:
    equal = equals(given, got)
    if type(given) is type(got):
        return equal
    # A subclass (an enum of strings in a `str` field) or another type of number stands for the same value.
    return equal and bool not in (type(given), type(got))
