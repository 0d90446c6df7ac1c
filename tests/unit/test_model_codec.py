"""What `publish(model)` was given, `handler(model)` gets: every kind of field, there and back."""

import dataclasses
import math
import typing
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar
from uuid import UUID

import pytest
import typing_extensions
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    AnyUrl,
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
    SerializeAsAny,
    StringConstraints,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
)
from pydantic.dataclasses import dataclass as pydantic_dataclass

from supervisor import Message
from supervisor.core.encode import fields_of
from supervisor.core.survival import same
from supervisor.errors import EncodeError
from supervisor.handling.decode import make_decoder
from supervisor.messages import DecodeError

T = TypeVar("T")
ID = UUID("12345678-1234-5678-1234-567812345678")
WHEN = datetime(2026, 11, 24, 12, 30, 1, 5, UTC)


def message(fields: typing.Mapping[str, str | bytes]) -> Message:
    made = Message("1-0", "s", "g")
    made.flat = [part if isinstance(part, bytes) else part.encode() for pair in fields.items() for part in pair]
    return made


def there_and_back(model: Any, annotation: Any = None) -> Any:
    return make_decoder(annotation or type(model))(message(fields_of(model)))


def check(model: Any, annotation: Any = None) -> None:
    got = there_and_back(model, annotation)
    assert same(model, got), (model, got, fields_of(model))


class Colour(Enum):
    RED = "red"
    NULL = "null"


class Level(IntEnum):
    LOW = 1


class Mood(StrEnum):
    GOOD = "good"


class Odd(Enum):
    ONE = 1
    TEXT = "1"
    NONE = None


class Inner(BaseModel):
    number: int
    note: str | None = None
    secret: SecretStr | None = None
    price: Decimal = Decimal(0)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str | None


class Everything(BaseModel):
    text: str
    number: int
    real: float
    yes: bool
    amount: Decimal
    day: date
    moment: datetime
    clock: time
    length: timedelta
    uuid: UUID
    colour: Colour
    level: Level
    odd: Odd
    choice: Literal["a", "null", 1, None]
    path: Path
    address: IPv4Address
    url: AnyUrl
    secret: SecretStr
    data: bytes
    maybe_text: str | None
    maybe_number: int | None
    maybe_amount: Decimal | None
    maybe_day: date | None
    maybe_bytes: bytes | None
    anything: Any
    number_or_text: int | str
    flag_or_text: bool | str
    text_or_list: str | list[str]
    number_or_real: int | float
    numbers: list[int]
    reals: list[float]
    amounts: list[Decimal]
    pair: tuple[int, str]
    unique: set[str]
    frozen: frozenset[int]
    by_name: dict[str, str | None]
    by_number: dict[int, Decimal]
    by_day: dict[date, int]
    inner: Inner
    inners: list[Inner | None]
    pet: Annotated[Cat | Dog, Discriminator("kind")]
    json_list: Json[list[int]]


class StrictEverything(Everything):
    model_config = ConfigDict(strict=True)


finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    [
        "null",
        "true",
        "1",
        "1.0",
        '"',
        '"null"',
        '""a""',
        "[1]",
        "{}",
        " 1",
        "NaN",
        "-",
        "1e5",
        "12345678901234567890.12",
    ]
)
amounts = st.decimals(allow_nan=False, allow_infinity=False, max_value=10**30, min_value=-(10**30))
integers = st.integers(-(2**80), 2**80)
values = st.recursive(
    st.none() | st.booleans() | integers | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
moments = st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])) | st.datetimes()
inners = st.builds(
    Inner, number=integers, note=st.none() | texts, secret=st.none() | st.builds(SecretStr, texts), price=amounts
)
strategies: dict[str, st.SearchStrategy[Any]] = {
    "text": texts,
    "number": integers,
    "real": st.floats(),
    "yes": st.booleans(),
    "amount": amounts,
    "day": st.dates(),
    "moment": moments,
    "clock": st.times(),
    "length": st.timedeltas(timedelta(days=-9999), timedelta(days=9999)),
    "uuid": st.uuids(),
    "colour": st.sampled_from(Colour),
    "level": st.sampled_from(Level),
    "odd": st.sampled_from(Odd),
    "choice": st.sampled_from(["a", "null", 1, None]),
    "path": st.sampled_from([Path("a/b"), Path("null"), Path("/")]),
    "address": st.ip_addresses(v=4),
    "url": st.just(AnyUrl("https://example.com/a?b=1")),
    "secret": st.builds(SecretStr, texts),
    "data": st.binary(max_size=8),
    "maybe_text": st.none() | texts,
    "maybe_number": st.none() | integers,
    "maybe_amount": st.none() | amounts,
    "maybe_day": st.none() | st.dates(),
    "maybe_bytes": st.none() | st.binary(max_size=8) | st.just(b"null"),
    "anything": values,
    "number_or_text": integers | texts,
    "flag_or_text": st.booleans() | texts,
    "text_or_list": texts | st.lists(texts, max_size=3),
    "number_or_real": integers | finite,
    "numbers": st.lists(integers, max_size=3),
    "reals": st.lists(finite, max_size=3),
    "amounts": st.lists(amounts, max_size=3),
    "pair": st.tuples(integers, texts),
    "unique": st.sets(texts, max_size=3),
    "frozen": st.frozensets(integers, max_size=3),
    "by_name": st.dictionaries(texts, st.none() | texts, max_size=3),
    "by_number": st.dictionaries(integers, amounts, max_size=3),
    "by_day": st.dictionaries(st.dates(), integers, max_size=3),
    "inner": inners,
    "inners": st.lists(st.none() | inners, max_size=3),
    "pet": st.builds(Cat, kind=st.just("cat"), lives=integers)
    | st.builds(Dog, kind=st.just("dog"), name=st.none() | texts),
    "json_list": st.lists(st.integers(0, 9), max_size=3).map(str),
}
everything = st.builds(Everything, **strategies)


@settings(deadline=None, max_examples=150)
@given(everything)
def test_every_kind_of_field_comes_back(model: Everything) -> None:
    check(model)


@settings(deadline=None, max_examples=60)
@given(everything)
def test_every_kind_of_field_of_a_strict_model_comes_back(model: Everything) -> None:
    check(StrictEverything.model_construct(**{name: getattr(model, name) for name in Everything.model_fields}))


@settings(deadline=None, max_examples=60)
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


class Envelope(BaseModel, Generic[T]):
    data: T


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
