"""JSON in bodies: a large one is parsed like a small one, and has limits."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import json_body
from api.json_body import AT_ONCE_BYTES, VALUES_MAX, parse_batch, parse_value
from api.problems import Problem

PADDING = " " * AT_ONCE_BYTES
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.text(alphabet='"\\[]{},: aé\u2028'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='"\\[]{}a', max_size=3), inner),
    max_leaves=8,
)


def batch(text: str | bytes) -> Any:
    return asyncio.run(parse_batch(text if isinstance(text, bytes) else text.encode()))


def refusal(text: str | bytes) -> Problem:
    with pytest.raises(Problem) as raised:
        batch(text)
    return raised.value


@given(values)
def test_a_large_body_is_read_like_a_small_one(value: Any) -> None:
    for indent in (1, None):
        text = json.dumps(value, indent=indent, ensure_ascii=False)
        assert batch(PADDING + text + PADDING) == batch(text) == value
        assert asyncio.run(parse_value((PADDING + text).encode())) == value


NOT_JSON = ["", "[", "[]x", "[,]", '[{"a":1},]', '[{"a":1} {"a":1}]', '[{"a":1}', '[{"a":1]', '[{"a":1}]]', "]"]
NOT_JSON += ['[{"a":NaN}]', '[{"a":"\t"}]', '[{"a":"\\x"}]', '[{"a":1,"a":1}]', "[" * 100_000]


@pytest.mark.parametrize("text", NOT_JSON, ids=range(len(NOT_JSON)))
def test_what_is_not_json_is_refused_in_either_size(text: str) -> None:
    assert refusal(text).kind == refusal(PADDING + text).kind == "malformed-json"


def test_bytes_that_are_not_utf8_are_refused() -> None:
    for text in (b'[{"a":"\xff"}]', b'\xff[{"a":1}]'):
        assert refusal(text).kind == refusal(PADDING.encode() + text).kind == "malformed-json"


@pytest.mark.parametrize(("value", "parser"), [("x", "_parse_ascii"), ("é", "_parse_any")])
def test_messages_are_counted_before_the_rest_is_parsed(
    monkeypatch: pytest.MonkeyPatch, value: str, parser: str
) -> None:
    parsed: list[str] = []
    original = getattr(json_body, parser)

    def counted(body: bytes, text: str, at: int, place: str) -> object:
        parsed.append(place)
        return original(body, text, at, place)

    monkeypatch.setattr(json_body, parser, counted)
    monkeypatch.setattr(json_body, "BATCH_MAX", 500)
    many = "[" + f'{{"a":"{value}"}},' * 1_000 + "1]"
    assert "1001 messages; at most 500" in refusal(many).detail
    assert "at most 500" in refusal(PADDING + many).detail
    assert len(parsed) == 500


def test_a_message_has_a_limit_of_values() -> None:
    many = ",".join(["[]"] * VALUES_MAX)
    for text in (f'{{"a":[{many}]}}', f'{{"a":[[{many}],"x"]}}'):
        with pytest.raises(Problem, match="line 7: a message has at most 250,000 values"):
            asyncio.run(parse_value(text.encode(), "line 7: "))
        assert "message 1: a message has at most" in refusal(f'[{{"b":"1"}},{text}]').detail
    # Marks within strings are no values, and each message is counted by itself.
    quoted = json.dumps({"a": '\\"[{,' * 300_000, "b": [1] * 100_000})
    assert len(asyncio.run(parse_value(quoted.encode()))["b"]) == 100_000
    assert len(batch(f"[{','.join([quoted] * 3)}]")) == 3
