"""JSON with the numbers that were written: integers of any size, and decimals with all of their digits. Pure."""

import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Self

import orjson

#: What a float may not hold: more than 15 digits, or an exponent.
_MAY_LOSE = re.compile(rb"[0-9.]{17}|[0-9][eE]")
_STRING_OR_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?', re.DOTALL)
_INTEGERS = range(-(2**63), 2**64)


class Number(float):
    """A JSON number whose digits a float does not hold; `text` has all of them."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        """Keep the digits beside the nearest float."""
        made = super().__new__(cls, text)
        made.text = text
        return made


def parse_number(text: str) -> float:
    """Return a float, or a `Number` where a float does not hold the digits."""
    value = float(text)
    return value if _holds(value, text) else Number(text)


def parse_exact(data: bytes | str) -> Any:
    """Parse JSON with exact numbers. Raises ValueError when it is not JSON, and RecursionError when it is too deep."""
    if not _MAY_LOSE.search(data if isinstance(data, bytes) else data.encode()):
        return orjson.loads(data)
    text = data.decode() if isinstance(data, bytes) else data
    return json.loads(text, parse_float=parse_number, parse_constant=refuse_constant)


def refuse_constant(name: str) -> Any:
    """Refuse NaN and Infinity, which Python's parser takes for JSON."""
    raise ValueError(f"{name} is not JSON")


def quote_decimals(text: str) -> str:
    """Return JSON text in which numbers that no float holds are strings, which decimals are read from exactly."""

    def quoted(found: re.Match[str]) -> str:
        token = found[0]
        if token[0] == '"' or token.lstrip("-").isdigit() or _holds(float(token), token):
            return token
        return f'"{token}"'

    return _STRING_OR_NUMBER.sub(quoted, text)


def dump_exact(value: Any, default: Callable[[Any], Any], *, spell_nan: bool = False) -> str:
    """Return JSON text with exact numbers.

    NaN and infinity become strings with `spell_nan`, else they raise ValueError. Raises TypeError (orjson's) for what
    is not JSON; `default` converts values of other types.
    """

    def convert(one: Any) -> Any:
        if isinstance(one, Number):
            return orjson.Fragment(one.text)
        return _exact(default(one), spell_nan=spell_nan)

    try:
        text = orjson.dumps(value, default=convert, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:
        if "64-bit" not in str(error):
            raise
    else:
        if b"null" not in text:  # orjson writes NaN as null
            return text.decode()
    return orjson.dumps(_exact(value, spell_nan=spell_nan), default=convert, option=orjson.OPT_NON_STR_KEYS).decode()


def _exact(value: Any, *, spell_nan: bool) -> Any:
    """Return a copy in which orjson loses no number."""
    if isinstance(value, Number):
        return orjson.Fragment(value.text)
    if isinstance(value, float) and not math.isfinite(value):
        if not spell_nan:
            raise ValueError(f"{value} is not JSON")
        return nan_text(value)
    if isinstance(value, int) and value not in _INTEGERS:
        return orjson.Fragment(str(int(value)))
    if isinstance(value, Mapping):
        return {_key(key): _exact(item, spell_nan=spell_nan) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_exact(item, spell_nan=spell_nan) for item in value]
    return value


def _key(key: Any) -> Any:
    return str(key) if isinstance(key, int) and key not in _INTEGERS else key


def nan_text(value: float) -> str:
    """Return `NaN`, `Infinity` or `-Infinity`, as pydantic spells them."""
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _holds(value: float, text: str) -> bool:
    return math.isfinite(value) and Decimal(repr(value)) == Decimal(text)
