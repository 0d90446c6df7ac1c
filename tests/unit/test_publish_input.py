"""JSON input of `supervisor publish`: read piece by piece, every fault with its line."""

import io
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.cli import json_input as under_test
from supervisor.cli.json_input import json_chunks
from supervisor.core.encode import encode_fields
from supervisor.errors import UsageError

SIZE = 500
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)
objects = st.dictionaries(st.text(min_size=1, max_size=5), values, min_size=1, max_size=3)


class Pieces(io.RawIOBase):
    """A source that gives the pieces one by one, as a slow pipe does."""

    name = "pieces"

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.asked = 0

    def read1(self, _count: int) -> bytes:
        self.asked += 1
        return self.pieces.pop(0) if self.pieces else b""


def read_all(text: str | bytes) -> list[dict[str, str]]:
    data = text.encode() if isinstance(text, str) else text
    return [message for chunk in json_chunks(io.BytesIO(data), SIZE) for message in chunk]


def split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@given(
    items=st.lists(objects, max_size=6), size=st.integers(1, 40), indent=st.sampled_from([None, 2]), array=st.booleans()
)
def test_whatever_the_shape_and_the_pieces(items: list[Any], size: int, indent: int | None, array: bool) -> None:
    text = json.dumps(items, indent=indent) if array else "\n".join(json.dumps(item, indent=indent) for item in items)
    chunks = json_chunks(Pieces(split(text.encode(), size)), SIZE)
    assert [message for chunk in chunks for message in chunk] == [encode_fields(item) for item in items]


def test_values_are_stored_as_text() -> None:
    big = "123456789012345678901234567890"
    (fields,) = read_all(f'{{"s": "é", "n": 1.50, "t": true, "o": {{"a": [1, null]}}, "big": {big}}}')
    assert fields == {
        "s": "é",
        "n": "1.50",
        "t": "true",
        "o": '{"a":[1,null]}',
        "big": "123456789012345678901234567890",
    }


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('{"a": 1}\n{"a": }\n', 2, "not valid JSON"),
        ('{"a": 1}\n\n3\n', 3, "must be a JSON object, not 3"),
        ('{"a": 1}\n{}\n', 2, "at least one field"),
        ('{"a": 1}\n{"a": "unended\n{"a": 2}\n', 2, "not valid JSON"),
        ('{"a": 1}\n{"a": 2', 2, "not valid JSON"),
        ('[\n{"a": 1}\n{"a": 2}]', 3, "expected ',' or ']'"),
        ('[\n{"a": 1},\n]', 3, "not valid JSON"),
        ('[{"a": 1},\n{"a": 2}', 2, "but the input ends"),
        ('[{"a": 1}]\n{"a": 2}', 2, "nothing may follow the array"),
        ('{"a": NaN}', 1, "NaN is not JSON"),
        ('{"a": 1}\n{"a": "\\ud800"}', 2, "not Unicode"),
        (b'{"a": 1}\n{"a": "\xff"}', 1, "not UTF-8"),
        ('{"a": 1}\n' + '{"a": ' + "[" * 100_000, 2, "not valid JSON"),
    ],
)
def test_faults_name_their_line(text: str | bytes, line: int, what: str) -> None:
    with pytest.raises(UsageError, match=rf":{line}: .*{what.replace('[', '.').replace(']', '.')}"):
        read_all(text)


def test_nothing_of_a_bad_chunk_is_yielded() -> None:
    text = "\n".join(['{"a": 1}'] * (SIZE + 3) + ["bad"])
    seen = []
    with pytest.raises(UsageError, match=f":{SIZE + 4}: "):
        for chunk in json_chunks(io.BytesIO(text.encode()), SIZE):
            seen.append(len(chunk))
    assert seen == [SIZE]


def test_empty_input_is_no_message() -> None:
    assert read_all("") == read_all(" \n\n") == read_all("[ ]") == []


def test_a_slow_pipe_is_not_held_up() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as source, open(writing, "wb", buffering=0) as sink:
        chunks = json_chunks(source, SIZE)
        for number in range(3):
            sink.write(b'{"n": %d}\n' % number)
            assert next(chunks) == [{"n": str(number)}]


def test_a_bad_line_ends_it_at_once() -> None:
    source = Pieces([b'{"a": oops}\n' + b'{"a": 1}\n' * 20, *[b'{"a": 1}\n'] * 100])
    with pytest.raises(UsageError):
        list(json_chunks(source, SIZE))
    assert source.asked == 1


def test_a_long_message_is_not_parsed_once_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "PIECE_BYTES", 16)
    source = io.BytesIO(json.dumps({"a": "x" * 100_000}).encode())
    tries = []
    decode = json.JSONDecoder.raw_decode
    monkeypatch.setattr(json.JSONDecoder, "raw_decode", lambda *args: tries.append(1) or decode(*args))
    ((message,),) = json_chunks(source, SIZE)
    assert len(message["a"]) == 100_000
    assert len(tries) < 20
