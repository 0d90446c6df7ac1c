"""What a handler would not get as it was is refused when it is published."""

import dataclasses
import math
from datetime import date, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, StringConstraints, field_serializer, field_validator

from supervisor.core.encode import fields_of
from supervisor.errors import EncodeError
from tests.unit.kinds_of_models import ID, Envelope


class NoText(BaseModel):
    value: list[bytes]


class Exact(BaseModel):
    value: str | Decimal


class Animal(BaseModel):
    name: str


class Bird(Animal):
    wings: int


class Shouting(BaseModel):
    value: str

    @field_validator("value")
    @classmethod
    def shout(cls, value: str) -> str:
        return f"{value}!"


class Masked(BaseModel):
    value: str

    @field_serializer("value")
    def mask(self, _value: str) -> str:
        return "***"


class GermanDay(BaseModel):
    value: date

    @field_serializer("value")
    def german(self, value: date) -> str:
        return value.strftime("%d.%m.%Y")


class Hidden(BaseModel):
    value: int = Field(exclude=True)
    other: int = 1


@dataclasses.dataclass
class Initial:
    value: dataclasses.InitVar[int]
    other: int = 1


@pytest.mark.parametrize(
    "model",
    [
        NoText(value=[b"\xff"]),
        Exact(value=Decimal("1.5")),
        Envelope[Animal](data=Bird(name="a", wings=2)),
        Envelope[SerializeAsAny[Animal]](data=Bird(name="a", wings=2)),
        Shouting(value="a"),
        Masked(value="a"),
        GermanDay(value=date(2026, 1, 2)),
        Hidden(value=1),
        Initial(1),
        Envelope[Any](data=ID),
        Envelope[Any](data=Decimal("1.5")),
        Envelope[str](data="\ud800"),
        Envelope[list[str]](data=["\ud800"]),
        Envelope[int].model_construct(data=None),  # type: ignore[arg-type]
        Envelope[int].model_construct(data="x"),  # type: ignore[arg-type]
        Envelope[Any](data=object()),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_would_not_come_back_is_refused_with_the_name_of_its_field(model: Any) -> None:
    with pytest.raises(EncodeError) as caught:
        fields_of(model)
    assert caught.value.field in ("value", "data"), caught.value
    assert repr(caught.value.field) in str(caught.value)


class Limited(BaseModel):
    number: Annotated[int, Field(gt=0)] = 1
    text: Annotated[str, StringConstraints(strip_whitespace=True)] = "a"
    items: Annotated[list[int], Field(max_length=1)] = []
    price: Decimal = Decimal(1)
    kind: Literal["a"] = "a"


class LimitedByConfig(BaseModel):
    model_config = ConfigDict(str_to_lower=True, str_max_length=3, allow_inf_nan=False)
    text: str = "a"
    texts: list[str] = []
    number: float = 1.0


class Seconds(BaseModel):
    model_config = ConfigDict(ser_json_timedelta="float")
    span: timedelta


class SetOrList(BaseModel):
    items: list[int] | set[int] = []


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        (Limited, "number", -5),
        (Limited, "text", " a "),
        (Limited, "items", [1, 2]),
        (Limited, "price", Decimal("NaN")),
        (Limited, "kind", "b"),
        (LimitedByConfig, "text", "A"),
        (LimitedByConfig, "texts", ["long"]),
        (LimitedByConfig, "number", math.nan),
        (Seconds, "span", timedelta(days=100_000, microseconds=1)),
        (SetOrList, "items", {1}),
    ],
)
def test_what_was_never_validated_is_refused_if_a_handler_could_not_get_it(
    model: type[BaseModel], field: str, value: object
) -> None:
    with pytest.raises(EncodeError, match=f"field '{field}'"):
        fields_of(model.model_construct(None, **{field: value}))
