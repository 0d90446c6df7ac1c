"""What programs without a library for the pool publish is decoded to models."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from supervisor.handling.decode import make_decoder
from tests.unit.kinds_of_models import message


class Orders(BaseModel):
    user_id: int
    email: str
    tags: list[str]
    price: Decimal | None
    prices: list[Decimal] = []
    note: str | None
    when: datetime | None = None
    either: int | str = 0


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, {}),
        ({"note": "null"}, {"note": None}),
        ({"note": "123"}, {"note": "123"}),
        ({"note": '"quoted"'}, {"note": "quoted"}),
        ({"note": '"no end'}, {"note": '"no end'}),
        ({"email": "null"}, {"email": "null"}),
        ({"email": '"a"'}, {"email": '"a"'}),
        ({"price": "12345678901234567890.12"}, {"price": Decimal("12345678901234567890.12")}),
        (
            {"prices": "[12345678901234567890.12, 1.10]"},
            {"prices": [Decimal("12345678901234567890.12"), Decimal("1.1")]},
        ),
        ({"user_id": "12345678901234567890123"}, {"user_id": 12345678901234567890123}),
        ({"user_id": "4.0"}, {"user_id": 4}),
        ({"either": "5"}, {"either": 5}),
        ({"either": "five"}, {"either": "five"}),
        ({"when": "1700000000"}, {"when": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)}),
        ({"when": "null"}, {"when": None}),
        ({"unknown": "[1]"}, {}),
    ],
)
def test_plain_producers(fields: dict[str, str], wanted: dict[str, Any]) -> None:
    base = {"user_id": "42", "email": "a@b", "tags": '["a"]'}
    got = make_decoder(Orders)(message(base | fields))
    whole = {"user_id": 42, "email": "a@b", "tags": ["a"], "price": None, "note": None} | wanted
    assert got == Orders(**whole)


@pytest.mark.parametrize("text", ['1,"admin":true', '1}{"a":1', '[1],"admin":[true]', "1 2"])
def test_json_can_not_smuggle_fields_in(text: str) -> None:
    class Guarded(BaseModel):
        model_config = ConfigDict(strict=True)
        value: Any
        admin: list[bool] | bool = False

    got = make_decoder(Guarded)(message({"value": text}))
    assert got == Guarded(value=text)
