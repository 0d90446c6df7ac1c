"""From messages to fields, and back through the handlers' decoder."""

import dataclasses
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from supervisor import Message
from supervisor.core.encode import FIELDS_MAX, encode_fields, fields_of
from supervisor.errors import EncodeError
from supervisor.handling.decode import make_decoder

WHEN = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
ID = UUID("12345678-1234-5678-1234-567812345678")


class Colour(Enum):
    RED = "red"


class Model(BaseModel):
    number: int
    when: datetime
    tags: list[str]
    note: str | None = None


@dataclasses.dataclass
class Data:
    number: int
    when: datetime
    tags: list[str]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as is", "as is"),
        ("", ""),
        ("1", "1"),
        (1, "1"),
        (1.5, "1.5"),
        (True, "true"),
        (None, "null"),
        (b"caf\xc3\xa9", "café"),
        ([1, "a", None], '[1,"a",null]'),
        ({"a": {"b": [1]}}, '{"a":{"b":[1]}}'),
        (2**70, str(2**70)),
        (WHEN, "2026-11-24T12:30:00+00:00"),
        (ID, str(ID)),
        (Colour.RED, "red"),
        (Decimal("1.10"), "1.10"),
        ({ID: 1}, f'{{"{ID}":1}}'),
    ],
)
def test_values(value: Any, text: str) -> None:
    assert encode_fields({"field": value}) == {"field": text}


@pytest.mark.parametrize(
    ("message", "field", "says"),
    [
        ({}, None, "at least one field"),
        ({"a": float("nan")}, "a", "not JSON"),
        ({"a": b"\xff"}, "a", "UTF-8"),
        ({"a": "\ud800"}, "a", "not Unicode"),
        ({"\ud800": "a"}, "\ud800", "not Unicode"),
        ({"a": object()}, "a", "not JSON"),
        ({"": "a"}, "", "not empty"),
        ({1: "a"}, "1", "must be a string"),
        ({str(n): "" for n in range(FIELDS_MAX + 1)}, None, f"at most {FIELDS_MAX}"),
    ],
)
def test_refused(message: dict[Any, Any], field: str | None, says: str) -> None:
    with pytest.raises(EncodeError, match=says) as caught:
        encode_fields(message)
    assert caught.value.field == field


def test_models_and_dataclasses_are_encoded_alike() -> None:
    want = {"number": "1", "when": "2026-11-24T12:30:00Z", "tags": '["a"]', "note": "null"}
    assert fields_of(Model(number=1, when=WHEN, tags=["a"])) == want
    assert fields_of(Data(1, WHEN, ["a"])) == {"number": "1", "when": "2026-11-24T12:30:00+00:00", "tags": '["a"]'}
    with pytest.raises(EncodeError, match="not int"):
        fields_of(1)


@given(
    st.builds(
        Model,
        number=st.integers(-(2**80), 2**80),
        when=st.datetimes(timezones=st.just(UTC)),
        tags=st.lists(st.text()),
        note=st.text(min_size=1).filter(lambda text: text != "null"),
    )
)
def test_a_handler_gets_back_what_was_published(model: Model) -> None:
    assert make_decoder(Model)(Message("1-0", "s", "g", fields_of(model))) == model
