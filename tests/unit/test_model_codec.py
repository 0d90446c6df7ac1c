"""What `publish(model)` was given, `handler(model)` gets: every kind of field, there and back."""

import dataclasses
import math
import typing
from datetime import UTC, date, datetime
from decimal import Decimal
from ipaddress import IPv6Network
from typing import Annotated, Any, Literal, NotRequired

import pytest
import typing_extensions
from hypothesis import given, settings
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Discriminator,
    Field,
    IPvAnyAddress,
    Json,
    PlainSerializer,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    computed_field,
    field_serializer,
    model_serializer,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass

from supervisor.core.encode import fields_of
from supervisor.core.round_trip import same
from supervisor.errors import EncodeError
from supervisor.handling.decode import make_decoder
from supervisor.messages import DecodeError
from tests.unit.kinds_of_models import (
    WHEN,
    Cat,
    Colour,
    Dog,
    Envelope,
    Everything,
    Inner,
    Level,
    Mood,
    StrictEverything,
    check,
    everything,
    message,
)


@settings(max_examples=150)
@given(everything)
def test_every_kind_of_field_comes_back(model: Everything) -> None:
    check(model)


@settings(max_examples=60)
@given(everything)
def test_every_kind_of_field_of_a_strict_model_comes_back(model: Everything) -> None:
    check(StrictEverything.model_construct(**{name: getattr(model, name) for name in Everything.model_fields}))


@settings(max_examples=60)
@given(everything, everything)
def test_decoding_does_not_depend_on_earlier_messages(first: Everything, second: Everything) -> None:
    decode = make_decoder(Everything)
    wanted = make_decoder(Everything)(message(fields_of(second)))
    decode(message(fields_of(first)))
    assert same(wanted, decode(message(fields_of(second))))


# Cases of which each has something of its own


class Aliases(BaseModel):
    both: int = Field(alias="Both")
    reading: str = Field(validation_alias="read_as")
    writing: str = Field(serialization_alias="written_as")
    choice: str | None = Field(None, validation_alias=AliasChoices("one", "two"))
    path: int = Field(0, validation_alias=AliasPath("deep", 0))
    apart: int = Field(validation_alias="in", serialization_alias="out")


class NestedAliases(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    inner: Aliases
    more: dict[str, list[Aliases]]


class Area(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.width**2


class Areas(BaseModel):
    model_config = ConfigDict(extra="forbid")
    first: Area
    others: list[Area]


class Extra(BaseModel):
    model_config = ConfigDict(extra="allow")
    number: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        return 2 * self.number


class Tree(BaseModel):
    name: str
    children: "list[Tree]" = []
    parent: "Tree | None" = None


class Numbers(RootModel[dict[str, int | str]]):
    pass


class Values(RootModel[list[int]]):
    pass


class Secrets(BaseModel):
    text: SecretStr
    data: SecretBytes
    day: Secret[date]
    maybe: SecretStr | None
    nested: dict[str, list[SecretStr]]


class Defaults(BaseModel):
    text: str = None  # type: ignore[assignment]
    real: float = 5
    either: int | str = None  # type: ignore[assignment]
    day: date = None  # type: ignore[assignment]
    tags: set[str] = []  # type: ignore[assignment]
    code: int = Field(7, exclude=True)


class Serialized(BaseModel):
    when: datetime
    tags: Annotated[list[str], BeforeValidator(lambda v: v.split(",") if isinstance(v, str) else v)]
    hexed: Annotated[int, BeforeValidator(lambda v: int(v, 16)), PlainSerializer(lambda v: f"{v:x}")]

    @field_serializer("when")
    def epoch(self, value: datetime) -> float:
        return value.timestamp()

    @field_serializer("tags")
    def joined(self, value: list[str]) -> str:
        return ",".join(value)


class Renamed(BaseModel):
    number: int

    @model_serializer
    def whole(self) -> dict[str, Any]:
        return {"number": self.number}


class Other(BaseModel):
    address: IPvAnyAddress
    network: IPv6Network
    size: ByteSize
    aware: AwareDatetime
    encoded: Base64Bytes
    mood: Mood
    literal: Literal[Colour.RED, Level.LOW]
    json_any: Json[Any] | None


class Base64Config(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes
    list_of: list[bytes]


@dataclasses.dataclass
class Plain:
    number: int
    when: datetime
    tags: list[str]
    either: int | str
    inner: Inner | None = None
    derived: int = dataclasses.field(init=False)
    text: str = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.derived = self.number + 1


@pydantic_dataclass
class Validated:
    number: Annotated[int, Field(gt=0, alias="n")]
    secret: SecretStr
    when: date | None


CASES = [
    Aliases.model_validate({"Both": 1, "read_as": "a", "writing": "b", "one": "null", "deep": [5], "in": 3}),
    NestedAliases(
        inner=Aliases.model_validate({"Both": 1, "read_as": "a", "writing": "b", "deep": [5], "in": 3}),
        more={"k": [Aliases.model_validate({"Both": 1, "read_as": "a", "writing": "1", "two": "x", "in": 3})]},
    ),
    Area(width=3),
    Areas(first=Area(width=1), others=[Area(width=2)]),
    Extra(number=1, count=5, text="5", none=None),  # type: ignore[call-arg]
    Tree(name="1", children=[Tree(name="null"), Tree(name="", parent=Tree(name="x"))]),
    Envelope[int](data=5),
    Envelope[int | str](data="5"),
    Envelope[Envelope[Decimal | None]](data=Envelope[Decimal | None](data=Decimal("1.10"))),
    Envelope(data="5"),
    Numbers({"a": 1, "b": "1"}),
    Secrets(
        text="a",  # type: ignore[arg-type]
        data=b"\xff",  # type: ignore[arg-type]
        day=Secret(date(2026, 1, 1)),
        maybe="null",  # type: ignore[arg-type]
        nested={"a": ["b"]},  # type: ignore[list-item]
    ),
    Defaults(),
    Serialized(when=datetime(2026, 1, 1, tzinfo=UTC), tags=["1"], hexed="10"),  # type: ignore[arg-type]
    Renamed(number=1),
    Other(
        address="::1",  # type: ignore[arg-type]
        network="::/64",  # type: ignore[arg-type]
        size="5MB",  # type: ignore[arg-type]
        aware=WHEN,
        encoded=b"/w==",
        mood=Mood.GOOD,
        literal=Level.LOW,
        json_any="null",
    ),
    Base64Config(data=b"\xff", list_of=[b"\xfe"]),
    Plain(1, WHEN, ["1"], "5", Inner(number=2**70)),
    Validated(n=1, secret="s", when=None),  # type: ignore[call-arg, arg-type]
    Envelope[list[float]](data=[math.nan, math.inf]),
    Envelope[dict[str, float]](data={"a": -math.inf}),
    Envelope[Decimal | int](data=Decimal("1.50")),
    Envelope[complex](data=1 + 2j),
    Envelope[bytes](data=b"\xff\x00"),
]


@pytest.mark.parametrize("model", CASES, ids=lambda model: type(model).__name__)
def test_cases_come_back(model: Any) -> None:
    check(model)


def test_a_default_that_its_own_validation_alters_is_not_stored() -> None:
    class Altered(BaseModel):
        number: int
        data: bytes | str = ""
        text: Annotated[str, AfterValidator(lambda text: text + "!")] = "a"

    assert fields_of(Altered(number=1)) == {"number": "1"}
    check(Altered(number=1))


def test_aliases_that_only_other_programs_use() -> None:
    class Named(BaseModel):
        model_config = ConfigDict(validate_by_name=True, validate_by_alias=False, extra="forbid")
        number: int = Field(alias="No")
        inner: "list[Named]" = []

    check(Named(number=1, inner=[Named(number=2)]))  # type: ignore[call-arg]


def test_a_root_that_is_no_object_is_refused_at_load_and_at_publish() -> None:
    with pytest.raises(TypeError, match="Values must have named fields, and a list has none"):
        make_decoder(Values)
    with pytest.raises(EncodeError, match="Values"):
        fields_of(Values([1]))


# What other programs publish


class Old(typing.TypedDict):
    number: int
    note: str | None
    maybe: NotRequired[list[int]]


class New(typing_extensions.TypedDict, total=False):
    number: typing_extensions.Required[int]
    note: str | None


def test_typed_dicts_of_both_modules() -> None:
    assert make_decoder(Old)(message({"number": "1"})) == {"number": 1, "note": None}
    assert make_decoder(Old)(message({"number": "1", "note": "a", "maybe": "[1]"}))["maybe"] == [1]
    assert make_decoder(New)(message({"number": "1"})) == {"number": 1}
    with pytest.raises(DecodeError, match="number"):
        make_decoder(Old)(message({"note": "a"}))


def test_a_union_of_models() -> None:
    pet = Annotated[Cat | Dog, Discriminator("kind")]
    for model in (Cat(kind="cat", lives=9), Dog(kind="dog", name=None), Dog(kind="dog", name="null")):
        check(model, pet)
    assert make_decoder(pet)(message({"kind": "dog"})) == Dog(kind="dog", name=None)


def test_computed_fields_are_stored_for_other_programs() -> None:
    assert fields_of(Area(width=3)) == {"width": "3", "area": "9"}


def test_bytes_that_are_not_utf8() -> None:
    class Photo(BaseModel):
        name: str
        data: bytes
        maybe: bytes | None = None

    got = make_decoder(Photo)(message({"name": "a", "data": b"\xff\x00", "maybe": b"\xfe"}))
    assert got == Photo(name="a", data=b"\xff\x00", maybe=b"\xfe")
    for annotation, fields in ((Photo, {"name": b"\xff", "data": b"x"}), (dict[str, str], {"name": b"\xff"})):
        with pytest.raises(DecodeError, match="field 'name' is not UTF-8"):
            make_decoder(annotation)(message(fields))
    with pytest.raises(DecodeError, match="field 'name' is not UTF-8"):
        _ = message({"ok": "a", "name": b"\xff"}).fields


def test_a_validator_that_wants_text_gets_text() -> None:
    class Split(BaseModel):
        numbers: Annotated[list[int], BeforeValidator(lambda v: v.split(","))]

    assert make_decoder(Split)(message({"numbers": "1,2"})) == Split(numbers="1,2")  # type: ignore[arg-type]
    assert make_decoder(Split)(message({"numbers": "1"})) == Split(numbers="1")  # type: ignore[arg-type]


def test_a_table_of_sqlmodel_is_validated() -> None:
    sqlmodel = pytest.importorskip("sqlmodel")
    table = type(sqlmodel.SQLModel)(
        "Hero",
        (sqlmodel.SQLModel,),
        {
            "__module__": __name__,
            "__annotations__": {"id": int | None, "when": datetime, "price": Decimal | None},
            "id": sqlmodel.Field(default=None, primary_key=True),
        },
        table=True,
    )
    check(table(when=WHEN, price=Decimal("1.10")))
    with pytest.raises(DecodeError, match="when"):
        make_decoder(table)(message({"when": "never"}))
