"""Parses the JSON of a body without holding the event loop, on which all other requests wait.

A thread parses a large one. The interpreter changes between threads while it runs Python code, but not within a call of
the parser. So one message has a limit of values, and an array is parsed item by item, no further than the limit of a
batch.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from supervisor.core.json_text import DECODER
from supervisor.publisher import BATCH_MAX
from supervisor.text import fault_text

from .problems import Problem
from .schemas import parse_json

#: Smaller bodies are read at once, within a few milliseconds.
AT_ONCE_BYTES = 64 * 1024
#: Values of one message, those within lists and objects included: the parser takes about 20 ms for them.
VALUES_MAX = 250_000
#: The first part of a message in which values are counted; each further part is larger, up to the second number.
_WINDOWS = 256, 256 * 1024
#: The marks of a body are counted in parts.
_PART_BYTES = 1024 * 1024
_BACKSLASH = ord("\\")
_SPACE = b" \t\n\r"
_OPEN = b"[{"
_BRACKET = re.compile(rb"[\[\]{}]")
#: Finds where an item ends; what it reads is not used, since it has not all digits of numbers.
_scan = json.JSONDecoder(strict=False).raw_decode
_Result = TypeVar("_Result")
#: One thread: large bodies are parsed one after the other.
_parser = ThreadPoolExecutor(1, thread_name_prefix="bodies")


async def parse_value(body: bytes, place: str = "") -> Any:
    """Return the value. Raises Problem; `place` begins its text."""
    if len(body) <= AT_ONCE_BYTES:
        return _parsed(body, place)
    return await _in_thread(_value, body, place)


async def parse_batch(body: bytes) -> Any:
    """Return the items of an array, or a value of another kind. Raises Problem, also for too many items."""
    if len(body) <= AT_ONCE_BYTES:
        value = parse_json(body)
        if isinstance(value, list):
            _check_count(len(value))
        return value
    return await _in_thread(_array, body)


async def check_json(body: bytes) -> None:
    """Raise Problem unless the body is valid JSON, of any number of values: FastAPI has read it already."""
    if len(body) <= AT_ONCE_BYTES:
        parse_json(body)
    else:
        await _in_thread(parse_json, body)


async def _in_thread(parse: Callable[..., _Result], *arguments: Any) -> _Result:
    return await asyncio.get_running_loop().run_in_executor(_parser, parse, *arguments)


def _value(body: bytes, place: str) -> Any:
    _check_values(body, 0, place)
    return _parsed(body, place)


def _array(body: bytes) -> Any:
    if body[(begin := _skip(body, 0)) : begin + 1] != b"[":
        return _value(body, "")
    return list(_items(body, begin))


def _items(body: bytes, begin: int) -> Iterator[Any]:
    """Yield each item of the array that begins there. Raises Problem if it is not an array."""
    has_many = _marks(body) > VALUES_MAX
    text = body.decode("latin-1")  # a character is a byte, and the marks of JSON are ASCII
    parse = _parse_ascii if body.isascii() and b"\\u" not in body else _parse_any
    at, count = _skip(body, begin + 1), 0
    closed = body[at : at + 1] == b"]"
    while not closed:
        _check_count(count + 1)
        place = f"message {count}: "
        if has_many:
            _check_values(body, at, place)
        item, end = parse(body, text, at, place)
        yield item
        count += 1
        at = _skip(body, end)
        closed = body[at : at + 1] == b"]"
        if not closed:
            if body[at : at + 1] != b",":
                raise _malformed(body, at, "expected ',' or ']'")
            at = _skip(body, at + 1)
    if (rest := _skip(body, at + 1)) < len(body):
        raise _malformed(body, rest, "text after the array")


def _parse_ascii(body: bytes, text: str, at: int, place: str) -> tuple[Any, int]:
    """Return the item that begins there, and its end. Raises Problem."""
    try:
        return DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return _parse_any(body, text, at, place)  # which says what is wrong with it


def _parse_any(body: bytes, text: str, at: int, place: str) -> tuple[Any, int]:
    """Do the same where a character may have more than one byte: find the end first."""
    end = _end_of_item(body, text, at, place)
    return _parsed(body[at:end], place), end


def _end_of_item(body: bytes, text: str, at: int, place: str) -> int:
    try:
        return _scan(text, at)[1]
    except json.JSONDecodeError as error:
        raise _malformed(body, error.pos, error.msg) from None
    except (ValueError, RecursionError) as error:
        raise Problem("malformed-json", f"{place}{fault_text(error)}") from None


def _parsed(text: bytes, place: str) -> Any:
    try:
        return parse_json(text)
    except Problem as problem:
        raise Problem(problem.kind, f"{place}{problem.detail}") from None


def _check_count(count: int) -> None:
    if count > BATCH_MAX:
        raise Problem("invalid", f"{count} messages; at most {BATCH_MAX} are allowed at once")


def _check_values(body: bytes, begin: int, place: str) -> None:
    """Raise Problem for a message with too many values, which begins there and is not parsed yet."""
    if len(body) - begin > VALUES_MAX and (begin or _marks(body) > VALUES_MAX) and _values(body, begin) > VALUES_MAX:
        raise Problem(
            "invalid", f"{place}a message has at most {VALUES_MAX:,} values; send what has more as one string"
        )


def _marks(text: bytes) -> int:
    """Return the number of marks that come with a value; counted part by part, since a count is one call."""
    parts = range(0, len(text), _PART_BYTES)
    return sum(text.count(mark, begin, begin + _PART_BYTES) for begin in parts for mark in (b",", b"[", b"{"))


def _values(body: bytes, begin: int) -> int:
    """Return about the number of values in the object or array that begins there; the count ends at the limit."""
    total, depth, inside = 0, 0, False
    window, most = _WINDOWS
    while begin < len(body) and total <= VALUES_MAX:
        end = begin + window
        while end < len(body) and body[end - 1] == _BACKSLASH:  # an escape stays in one part
            end += 1
        texts = body[begin:end].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b" ".join(texts[1::2] if inside else texts[::2])
        opens = outside.count(b"[") + outside.count(b"{")
        closes = outside.count(b"]") + outside.count(b"}")
        total += outside.count(b",") + opens
        if closes < depth:
            depth += opens - closes
        else:  # it may end here
            for mark in _BRACKET.findall(outside):
                depth += 1 if mark in _OPEN else -1
                if depth <= 0:
                    return total
        inside ^= len(texts) % 2 == 0
        begin, window = end, min(window * 4, most)
    return total


def _skip(body: bytes, at: int) -> int:
    while at < len(body) and body[at] in _SPACE:
        at += 1
    return at


def _malformed(body: bytes, at: int, why: str) -> Problem:
    line = body.count(b"\n", 0, at) + 1
    return Problem("malformed-json", f"{why}: line {line} column {at - body.rfind(bytes((10,)), 0, at)}")
