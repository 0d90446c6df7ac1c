"""Tables of config.toml as classes: typed, with defaults, checked when they are made, never changed afterwards.

class LogSettings(Section):
    level: str = setting(Choice("debug", "info"), "info")
"""

from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, ClassVar, NamedTuple, NoReturn, Self, dataclass_transform

from supervisor.errors import ConfigError
from supervisor.values import WRONG, KeyPath, Kind, WrongValue


class Setting(NamedTuple):
    """The kind of value under one key, and its default."""

    kind: Kind
    default: Callable[[], Any]


def setting(kind: Kind, default: Any = None, *, factory: Callable[[], Any] | None = None) -> Any:
    """Declare a key of a Section. `factory` makes a default that is not the same everywhere."""
    return Setting(kind, factory or (lambda: default))


def table(section: type["Section"]) -> Any:
    """Declare a table in a Section."""
    return Setting(Table(section), section)


def tables(section: type["Section"]) -> Any:
    """Declare a table of tables whose names are free, such as `[stream."name"]`."""
    return Setting(Tables(section), dict)


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Section:
    """A table of config.toml: unknown keys are refused, values never change."""

    declared: ClassVar[dict[str, Setting]] = {}

    def __init_subclass__(cls) -> None:
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Setting)}
        for name in own:
            delattr(cls, name)
        cls.declared = {**cls.declared, **own}

    def __init__(self, **values: Any) -> None:
        """Raises ConfigError that names every value that is wrong."""
        problems: list[WrongValue] = []
        vars(self).update(vars(self.collect((), values, problems)))
        if problems:
            wrong = (f"{'.'.join(one.path)} = {one.value!r}: {one.allowed or 'unknown key'}" for one in problems)
            raise ConfigError("\n".join(wrong))

    @classmethod
    def collect(cls, path: KeyPath, values: Mapping[str, Any], problems: list[WrongValue]) -> Self:
        """Make the table from `values`. Each error is added to `problems`, and the default used instead."""
        made, before = cls.__new__(cls), len(problems)
        problems += [WrongValue((*path, name), value, "") for name, value in values.items() if name not in cls.declared]
        for name, (kind, default) in cls.declared.items():
            value = kind.collect((*path, name), values[name], problems) if name in values else WRONG
            vars(made)[name] = default() if value is WRONG else value
        if len(problems) == before:  # else a default that replaced a wrong value may contradict others
            problems += [WrongValue((*path, name), getattr(made, name), text) for name, text in made.contradictions()]
        return made

    def contradictions(self) -> list[tuple[str, str]]:
        """Return (key, what it must be) for values that are allowed alone, but not together."""
        return []

    def changed(self, **values: Any) -> Self:
        """Return a copy with other values, which are not checked again."""
        made = type(self).__new__(type(self))
        vars(made).update(vars(self) | values)
        return made

    def as_dict(self) -> dict[str, Any]:
        """Return the table as plain data, without values that are None."""
        return {name: _plain(value) for name, value in vars(self).items() if value is not None}

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} can't be changed")


class Table(Kind):
    """A table whose keys are those of a Section."""

    def __init__(self, section: type[Section]) -> None:
        self.section = section

    def collect(self, path: KeyPath, value: Any, problems: list[WrongValue]) -> Any:
        """Make the Section."""
        return self.section.collect(path, _as_table(path, value, problems), problems)


class Tables(Table):
    """A table of such tables, with free names."""

    def collect(self, path: KeyPath, value: Any, problems: list[WrongValue]) -> Any:
        """Make a dict of name -> Section."""
        tables = _as_table(path, value, problems)
        return {name: Table.collect(self, (*path, name), one, problems) for name, one in tables.items()}


class FreeTable(Kind):
    """A table with any keys."""

    def collect(self, path: KeyPath, value: Any, problems: list[WrongValue]) -> Any:
        """Return the table unchanged."""
        return dict(_as_table(path, value, problems))


def _as_table(path: KeyPath, value: Any, problems: list[WrongValue]) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    name = ".".join(path)
    problems.append(WrongValue(path, value, f"must be a table, [{name}]"))
    return {}


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.as_dict()
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return str(value) if isinstance(value, PurePath) else value
