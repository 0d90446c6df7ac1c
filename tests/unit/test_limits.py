"""Keys, rates and limits of handlers: how they are read, and what is refused when handlers are loaded."""

import re
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field

from supervisor import HandlerError, Message, handler
from supervisor.core.message_key import cost_reader, key_reader, keys_reader
from supervisor.handling.loader import specs_of
from supervisor.settings.model import Settings


class Order(BaseModel):
    customer_id: int
    total: float = Field(1, validation_alias="sum")


@dataclass
class Call:
    tenant: str


def message(**fields: str) -> Message:
    return Message("1-1", "orders", "billing", fields)


def wrong(annotation: Any = Message, sections: dict[str, Any] | None = None, **options: Any) -> str:
    """Load a handler with these options, which must be refused, and return the error."""

    def function(event: Any) -> None:
        pass

    function.__annotations__["event"] = annotation
    with pytest.raises(HandlerError) as refused:
        specs_of(Settings(**sections or {}), [handler("orders", group="billing", **options)(function)])
    text = str(refused.value)
    assert re.match(rf"{re.escape(str(Path(__file__)))}:\d+: ", text)
    return text.partition(": ")[2]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"key": 7}, "option key = 7: must be the name of a field or a function of the message"),
        ({"key": lambda: 1}, "must take the message as its only argument"),
        ({"key": "a", "per_key": 0}, "option per_key = 0: must be between 1 and 10,000"),
        ({"key": "a", "on_dead": "hlt"}, 'must be "skip" or "halt", did you mean'),
        ({"per_key": 2}, "option per_key = 2 needs option key"),
        ({"key": "a", "per_key": 2, "on_dead": "halt"}, 'on_dead = "halt" needs per_key = 1, not 2'),
        ({"group_concurrency": -1}, "option group_concurrency = -1: must be between 0 and 10,000"),
        (
            {"rate": "100 per m"},
            'must be a whole number per second, minute, hour or day, such as "100/m"',
        ),
        (
            {"rate": "0.5/s"},
            'must be a whole number per second, minute, hour or day, such as "100/m"',
        ),
        ({"rate_key": "a"}, "option rate_key = 'a' needs option rate"),
        ({"per_kye": 2}, "unknown option 'per_kye'"),
    ],
)
def test_wrong_limits_are_refused_with_their_place_and_what_is_allowed(options: dict[str, Any], text: str) -> None:
    assert text in wrong(**options)


def test_an_async_function_can_be_no_key() -> None:
    async def key(message: Message) -> str:
        return "a"

    assert "must be a plain function, not an async one" in wrong(key=key)


def test_a_field_that_the_model_does_not_have_is_refused() -> None:
    assert "option key = 'custmer_id' is no field of Order, did you mean 'customer_id'?" in wrong(
        Order, key="custmer_id"
    )
    assert "option rate_key = 'tenat' is no field of Call" in wrong(Call, rate="1/s", rate_key="tenat")


def test_a_field_by_its_alias_and_any_field_of_a_message_are_accepted() -> None:
    @handler("orders", group="a", key="sum")
    async def of_model(event: Order) -> None: ...

    @handler("orders", group="b", key="whatever")
    async def of_message(event: Message) -> None: ...

    assert [spec.options.key for spec in specs_of(Settings(), [of_model, of_message])] == ["sum", "whatever"]


def test_config_sets_limits_and_wins() -> None:
    @handler("orders", group="a", rate="1/s")
    async def function(event: Order) -> None: ...

    settings = Settings(consumer={"per_key": 3}, stream={"orders": {"key": "customer_id", "rate": "5/m"}})
    (spec,) = specs_of(settings, [function])
    assert (spec.options.key, spec.options.per_key, spec.options.rate) == ("customer_id", 3, "5/m")


def test_a_key_is_a_fields_value_or_what_a_function_returns() -> None:
    assert key_reader("a")(message(b="x", a="7")) == b"7"
    assert key_reader("a")(message(b="a", c="a")) is None
    assert key_reader(lambda one: one.fields["a"] + "!")(message(a="7")) == b"7!"
    assert key_reader(lambda _: 7)(message()) == b"7"
    assert key_reader(lambda _: None)(message()) is None
    assert key_reader("")(message(a="7")) is None


def test_a_long_key_and_one_that_is_no_text_are_stored_as_a_hash() -> None:
    long, binary = key_reader(lambda _: "x" * 201)(message()), key_reader(lambda _: b"\xff")(message())
    assert long is not None and binary is not None
    assert re.fullmatch(rb"#[0-9a-f]{32}", long) and re.fullmatch(rb"#[0-9a-f]{32}", binary)


@pytest.mark.parametrize("key", [object(), {"a"}, {"a": 1}, memoryview(b"a"), ("a", object()), (one for one in "a")])
def test_a_key_whose_text_differs_between_processes_is_refused(key: object) -> None:
    with pytest.raises(TypeError, match=rf"a key must be text, .* or list of these, not {type(key).__name__}"):
        key_reader(lambda _: key)(message())


def test_a_key_may_have_several_parts() -> None:
    day = date(2030, 1, 31)
    assert (
        key_reader(lambda _: ("acme", 7, None, [day]))(message()) == b"('acme', 7, None, [datetime.date(2030, 1, 31)])"
    )
    assert key_reader(lambda _: day)(message()) == b"2030-01-31"
    assert key_reader(lambda _: UUID(int=7))(message()) == b"00000000-0000-0000-0000-000000000007"
    assert key_reader(lambda _: Decimal("1.10"))(message()) == b"1.10"


def test_keys_are_read_at_once_where_each_message_has_a_plain_one() -> None:
    assert keys_reader("a")([message(b="x", a="7"), message(a="")]) == [b"7", b""]
    assert keys_reader("a")([]) == []
    for other in (message(b="x"), message(a="x" * 201), message(a="ü")):
        assert keys_reader("a")([message(a="7"), other]) is None
    assert keys_reader(lambda _: "7")([message(a="7")]) is None
    assert keys_reader("")([message(a="7")]) is None


def test_a_cost_is_a_number() -> None:
    assert cost_reader("tokens")(message(tokens="12.5")) == 12.5
    assert cost_reader("")(message()) == 1
    for text in ("x", "-1", "nan", "inf", "1e12"):
        with pytest.raises(ValueError, match="the field 'tokens', which is the rate_cost, must be a number from 0"):
            cost_reader("tokens")(message(tokens=text))
