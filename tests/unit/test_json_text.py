"""The JSON of producers: numbers stay as they were written, and an object names each member once."""

import io
import json
from typing import Any

import pytest

from supervisor.cli.json_input import json_chunks
from supervisor.core.encode import encode_fields
from supervisor.core.json_text import parse_exact
from supervisor.errors import EncodeError, UsageError

NUMBERS = [
    "0", "-0", "-0.0", "1", "1.0", "1.5", "1.50", "100.00", "0.10", "1e2", "1E2", "1e+2", "-1.5e-7", "1e400", "0.00001",
    "0.0001", "9007199254740993", "18446744073709551615", "18446744073709551616", "-9223372036854775809",
    "12345678901234567.89", "123456789012345.6", "3.141592653589793238462643383279", "1234567890123456789012345678901",
]  # fmt: skip
TWICE = ['{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 1}}', '{"b": [{"a" : 1, "a"\t: 1}]}', '{"a": ":", "\\u0061": 1}']


def by_http(text: str) -> dict[str, str]:
    return encode_fields(parse_exact(text.encode()))


def by_command(text: str) -> dict[str, str]:
    [[fields]] = json_chunks(io.BytesIO(text.encode()), 10)
    return fields


@pytest.mark.parametrize("read", [by_http, by_command])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_is_stored_as_it_was_written(read: Any, number: str) -> None:
    text = f'{{"n": {number}, "list": [1, {number}], "object": {{"deep": [{{"n": {number}}}]}}}}'
    assert read(text) == {"n": number, "list": f"[1,{number}]", "object": f'{{"deep":[{{"n":{number}}}]}}'}


@pytest.mark.parametrize("read", [by_http, by_command])
@pytest.mark.parametrize("text", TWICE)
def test_an_object_with_two_members_of_one_name_is_refused(read: Any, text: str) -> None:
    with pytest.raises((ValueError, UsageError), match="two members 'a'"):
        read(text)


@pytest.mark.parametrize("read", [by_http, by_command])
@pytest.mark.parametrize("number", ["1" * 5_000, "-" + "1" * 5_000], ids=["positive", "negative"])
def test_an_integer_with_too_many_digits_is_told_in_plain_words(read: Any, number: str) -> None:
    with pytest.raises((ValueError, UsageError), match=r"an integer has more than 4,300 digits$"):
        read(f'{{"n": {number}}}')


@pytest.mark.parametrize(
    "value", [10**5_000, [-(10**5_000)], {"deep": 10**5_000}], ids=["bare", "in a list", "in an object"]
)
def test_an_integer_with_too_many_digits_is_told_to_a_publisher(value: Any) -> None:
    with pytest.raises(EncodeError, match=r"field 'n': not JSON serializable: an integer has more than 4,300 digits$"):
        encode_fields({"n": value})


@pytest.mark.parametrize(
    "text", ['{"a": "\\":", "b": "x:y", "c": {"a": ":"}}', '[{"a": 1}, {"a": 1}]', '{"a" : 1}', "{}"]
)
def test_other_objects_may_have_the_same_names(text: str) -> None:
    assert parse_exact(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", ["", "{", "[1,]", "01", "NaN", '{"a": Infinity}', '"\\ud800"', '{"a": 1} x'])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        parse_exact(text.encode())


@pytest.mark.parametrize("inner", ["1", "1e2"])
def test_what_is_too_deep_is_refused(inner: str) -> None:
    with pytest.raises(RecursionError):
        parse_exact(b"[" * 200_000 + inner.encode())
