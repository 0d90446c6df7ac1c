"""A model with every kind of field, values for it, and its way through a message and back."""

import typing
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, ConfigDict, Discriminator, Json, SecretStr

from supervisor import Message
from supervisor.core.encode import fields_of
from supervisor.core.round_trip import same
from supervisor.handling.decode import make_decoder

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


class Envelope(BaseModel, Generic[T]):
    data: T
