"""Kinds of values: what a setting, an option of a handler or a flag may be, and how each is read from text.

They say in plain words what is allowed, the same words wherever a value comes from. Pydantic would check as much, and
costs 100 ms of CPU at each start of a command.
"""

import re
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

from supervisor.text import did_you_mean

#: Where a value stands: the names of its tables and its own.
KeyPath = tuple[str, ...]

#: A century. Redis refuses a time of more milliseconds than fit into 64 bits.
SECONDS_MAX = 3_153_600_000
#: Stands for a value that was refused.
WRONG: Any = object()
_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class WrongValue(NamedTuple):
    """A value that was refused."""

    path: KeyPath
    value: Any
    #: What is allowed, as in "must be a whole number"; empty for a key that does not exist.
    allowed: str


class Kind:
    """A kind of value, checked by `check`."""

    def check(self, value: Any) -> Any:
        """The value as it is used. Raises ValueError, whose text says what it must be."""
        return value

    def parse(self, text: str) -> Any:
        """Read the text as a value for `check`; unchanged when it can't be read, so that `check` says what is wrong."""
        return text

    def collect(self, path: KeyPath, value: Any, problems: list[WrongValue]) -> Any:
        """Check the value; on an error add it to `problems` and return WRONG."""
        try:
            return self.check(value)
        except ValueError as error:
            problems.append(WrongValue(path, value, str(error)))
            return WRONG


class Flag(Kind):
    """true or false."""

    def check(self, value: Any) -> bool:
        """The value. Raises ValueError."""
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value

    def parse(self, text: str) -> Any:
        """Read `true`, `yes`, `on`, `1` and their opposites."""
        return _BOOLEANS.get(text.strip().lower(), text)


class FlagOr(Flag):
    """true, false or one word."""

    def __init__(self, word: str) -> None:
        self.word = word

    def check(self, value: Any) -> Any:
        """The value. Raises ValueError."""
        if not isinstance(value, bool) and value != self.word:
            raise ValueError(f'must be true, false or "{self.word}"')
        return value


class Number(Kind):
    """A finite number within limits."""

    noun = "a number"
    _made: type[int | float] = float

    def __init__(self, least: float | None = None, most: float | None = None, *, above: float | None = None) -> None:
        """From `least` to `most`; `above` is a lower limit that is not allowed itself."""
        self.least, self.most, self.above = least, most, above

    def check(self, value: Any) -> Any:
        """The value as a float or int. Raises ValueError."""
        if isinstance(value, bool) or not isinstance(value, int | float if self._made is float else int):
            raise ValueError(f"must be {self._described()}")
        try:
            number = self._made(value)
        except OverflowError:
            number = float("inf")
        if not isfinite(number):
            raise ValueError("must be a finite number")
        if self.is_outside(number):
            raise ValueError(f"must be {self.limits() or self.noun}")
        return number

    def is_outside(self, number: float) -> bool:
        """Return whether the number breaks a limit."""
        return (
            (self.least is not None and number < self.least)
            or (self.most is not None and number > self.most)
            or (self.above is not None and number <= self.above)
        )

    def limits(self) -> str:
        """Return `between 0 and 256`, `at least 1`, `more than 0`; empty without limits."""
        if self.least is not None and self.most is not None:
            return f"between {self.least:,} and {self.most:,}"
        if self.above is not None:
            return f"more than {self.above:,}"
        return f"at least {self.least:,}" if self.least is not None else ""

    def parse(self, text: str) -> Any:
        """Read a number."""
        try:
            return self._made(text.strip())
        except ValueError:
            return text

    def _described(self) -> str:
        limits = self.limits()
        return f"{self.noun}{' ' if limits.startswith('between') else ', ' if limits else ''}{limits}"


class Whole(Number):
    """A whole number within limits."""

    noun = "a whole number"
    _made = int


#: How many workers a pool may have.
WORKERS = Whole(0, 256)


class Duration(Number):
    """Seconds, or text with a unit: `"36h"`."""

    def __init__(self, least: float = 0, most: float = SECONDS_MAX, *, zero: str = "") -> None:
        """`zero` says what 0 means."""
        super().__init__(least, most)
        self.zero = zero

    def check(self, value: Any) -> float:
        """The seconds. Raises ValueError."""
        try:
            return float(super().check(seconds_of(value)))
        except ValueError:
            raise ValueError(f"must be {self._described()}") from None

    def _described(self) -> str:
        limits = (
            "between 0 and a century" if self.most == SECONDS_MAX else f"between {self.least:,} and {self.most:,} s"
        )
        zero = f"; 0: {self.zero}" if self.zero else ""
        return f'seconds, or a time with its unit such as "7d", "36h", "90m" or "45s", {limits}{zero}'


def seconds_of(value: Any) -> Any:
    """Return `"36h"` as 129600.0, `""` as 0; anything else unchanged."""
    if value == "":
        return 0
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?([dhms])", value) if isinstance(value, str) else None
    return float(match[1]) * _UNITS_S[match[2]] if match else value


class Text(Kind):
    """Text, of a certain form where `pattern` is given."""

    def __init__(
        self, allowed: str = "text, in quotes", pattern: str = "", *, check: Callable[[str], object] | None = None
    ) -> None:
        """`allowed` describes what matches `pattern`. `check` raises ValueError for text that is wrong otherwise."""
        self.allowed = allowed
        self._pattern = pattern
        self._check = check

    def check(self, value: Any) -> str:
        """The text. Raises ValueError."""
        if not isinstance(value, str) or (self._pattern and not re.fullmatch(self._pattern, value)):
            raise ValueError(f"must be {self.allowed}")
        if self._check is not None:
            self._check(value)
        return value


class Choice(Kind):
    """One of a few words."""

    def __init__(self, *allowed: str) -> None:
        self.allowed = allowed

    def check(self, value: Any) -> str:
        """The word. Raises ValueError with a suggestion."""
        if value in self.allowed:
            return str(value)
        *first, last = (f'"{word}"' for word in self.allowed)
        raise ValueError(f"must be {', '.join(first)} or {last}{did_you_mean(str(value), self.allowed)}")


class ListOf(Kind):
    """A list of values of one kind."""

    def __init__(self, item: Kind, example: str) -> None:
        """`example` is a list as TOML writes it."""
        self.item = item
        self.example = example

    def parse(self, text: str) -> Any:
        """Read `a,b` or a JSON list."""
        if text.lstrip().startswith("["):
            import json

            try:
                return json.loads(text)
            except ValueError:
                return text
        return [part.strip() for part in text.split(",") if part.strip()]

    def collect(self, path: KeyPath, value: Any, problems: list[WrongValue]) -> Any:
        """Check each item of the list."""
        if not isinstance(value, list):
            problems.append(WrongValue(path, value, f"must be a list, such as {self.example}"))
            return WRONG
        before = len(problems)
        items = [self.item.collect((*path, str(at)), one, problems) for at, one in enumerate(value)]
        return items if len(problems) == before else WRONG


def kind_of(value: object) -> Kind:
    """Return the kind of a value that is not declared."""
    kinds: dict[type, Kind] = {bool: Flag(), int: Whole(), float: Number(), list: ListOf(Kind(), "[]")}
    return kinds.get(type(value), Kind())
