"""JSON with the numbers that were written, and without objects that name a member twice. Pure.

`DECODER` reads all JSON that people write: over HTTP, in files and in pipes.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Self

import orjson

from supervisor.text import fault_text

_STRING_OR_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?', re.DOTALL)
_INTEGERS = range(-(2**63), 2**64)


class ExactNumber(float):
    """A JSON number that a float would not be written as; `text` is how it was written."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        """Keep the text beside the nearest float."""
        made = super().__new__(cls, text)
        made.text = text
        return made


def _decimal(text: str) -> float:
    value = float(text)
    return value if orjson.dumps(value) == text.encode() else ExactNumber(text)


def _integer(text: str) -> float:
    if text == "-0":
        return ExactNumber(text)
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(fault_text(error)) from None


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) < len(members):
        counts = Counter(name for name, _ in members)
        raise ValueError(f"an object has two members {counts.most_common(1)[0][0]!r}")
    return value


def _refuse_constant(name: str) -> Any:
    """Refuse NaN and Infinity, which Python's parser takes for JSON."""
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(
    parse_float=_decimal, parse_int=_integer, parse_constant=_refuse_constant, object_pairs_hook=_object
)


def parse_exact(data: bytes) -> Any:
    """Parse JSON. Raises ValueError when it is not JSON or a name occurs twice, RecursionError when it is too deep."""
    text = data.decode()
    value = DECODER.decode(text)
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is not Unicode
    return value


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
        if isinstance(one, ExactNumber):
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
    if isinstance(value, ExactNumber):
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


def is_document(text: str) -> bool:
    """Return whether the text is a JSON object or list; quicker than `from_json`, but NaN and deep nesting are not."""
    if not text.startswith(("{", "[")):
        return False
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True
