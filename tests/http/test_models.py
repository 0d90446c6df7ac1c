"""A model published by `Publisher`, over HTTP or by the command reaches a handler of the same model as it was."""

import io
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import redis as redis_py
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from supervisor import Message, SyncPublisher
from supervisor.cli.json_input import json_chunks
from supervisor.core.round_trip import same
from supervisor.handling.decode import make_decoder
from tests.http.service import STREAM
from tests.unit.kinds_of_models import Everything, everything

MESSAGES = f"/v1/streams/{STREAM}/messages"
few = settings(
    max_examples=10,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Item(BaseModel):
    number: int
    note: str | None


class Order(BaseModel):
    """Everything that JSON says without doubt: a program without the model writes it as it is."""

    text: str
    number: int
    price: Decimal
    when: datetime
    uuid: UUID
    maybe: int | None
    numbers: list[int]
    items: list[Item]
    prices: dict[str, Decimal | None]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
integers = st.integers(-(2**80), 2**80)
amounts = st.decimals(-(10**25), 10**25, allow_nan=False, places=4)
orders = st.builds(
    Order,
    text=texts | st.sampled_from(["null", "5", '"a"']),
    number=integers,
    price=amounts,
    when=st.datetimes(),
    uuid=st.uuids(),
    maybe=st.none() | integers,
    numbers=st.lists(integers, max_size=3),
    items=st.lists(st.builds(Item, number=integers, note=st.none() | texts), max_size=2),
    prices=st.dictionaries(texts, st.none() | amounts, max_size=2),
)


def handled(kind: type[BaseModel], fields: Mapping[Any, Any]) -> Any:
    message = Message("1-0", STREAM, "g")
    message.flat = [one if isinstance(one, bytes) else one.encode() for pair in fields.items() for one in pair]
    return make_decoder(kind)(message)


def test_over_the_publisher(redis_server: Any) -> None:
    url = redis_server.url
    with SyncPublisher(url) as publisher, redis_py.Redis(unix_socket_path=str(redis_server.socket)) as redis:

        @few
        @given(everything)
        def publish(model: Everything) -> None:
            entry = publisher.publish(STREAM, model).id
            ((_, fields),) = redis.xrange(STREAM, entry, entry)
            assert same(model, handled(Everything, fields))

        publish()


@few
@given(model=orders)
def test_over_http(http: httpx.Client, store: redis_py.Redis, model: Order) -> None:
    headers = {"content-type": "application/json"}
    entry = http.post(MESSAGES, content=model.model_dump_json(), headers=headers).json()["id"]
    ((_, fields),) = store.xrange(STREAM, entry, entry)
    assert same(model, handled(Order, fields))


@few
@given(model=orders)
def test_by_the_command(model: Order) -> None:
    ((fields,),) = json_chunks(io.BytesIO(model.model_dump_json().encode()), 1)
    assert same(model, handled(Order, fields))


def test_numbers_keep_their_digits(http: httpx.Client, store: redis_py.Redis) -> None:
    body = b'{"price": 12345678901234567890.12, "n": 123456789012345678901234567890, "e": 1e400,'
    body += b'"list": [0.1234567890123456789]}'
    assert http.post(MESSAGES, content=body, headers={"content-type": "application/json"}).status_code == 202
    ((_, fields),) = store.xrange(STREAM)
    assert fields == {
        "price": "12345678901234567890.12",
        "n": "123456789012345678901234567890",
        "list": "[0.1234567890123456789]",
        "e": "1e400",
    }
    ((same_fields,),) = json_chunks(io.BytesIO(body), 1)
    assert same_fields == fields
