"""What producers expect: validation against the handlers' models, CloudEvents, traces, limits, an allow-list."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis as redis_py

from tests.http.service import STREAM, Service, problem
from tests.support.waiting import eventually

MESSAGES = f"/v1/streams/{STREAM}/messages"
ORDERS = "/v1/streams/orders/messages"
NDJSON = {"content-type": "application/x-ndjson"}
EVENT = {"specversion": "1.0", "id": "7", "source": "/shop", "type": "order.created"}
CE = {"ce_specversion": "1.0", "ce_id": "7", "ce_source": "/shop", "ce_type": "order.created"}
STRUCTURED = {"content-type": "application/cloudevents+json"}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HANDLERS = """
from pydantic import BaseModel, Field
from supervisor import handler

class Line(BaseModel):
    sku: str
    count: int = Field(gt=0)

class Order(BaseModel):
    order_id: int
    lines: list[Line] = []

@handler("orders", group="pack")
async def pack(order: Order) -> None: ...

@handler("orders", group="bill")
async def bill(orders: list[Order]) -> None: ...

@handler("events:user_created", group="mail")
async def mail(message: dict[str, str]) -> None: ...
"""
#: More than any test stores but one: the service knows a backlog until it counts again.
CONFIG = '[api]\nstreams = ["events:*", "orders"]\nmax_lag = 100'


@pytest.fixture(scope="module")
def shop(_shared: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(
        tmp_path_factory.mktemp("shop"), _shared[0].url, config=CONFIG, files={"handlers.py": HANDLERS}
    ) as service:
        yield service


@pytest.fixture
def http(shop: Service, store: redis_py.Redis) -> httpx.Client:
    return shop.patient


def test_a_message_that_a_handler_would_refuse_is_refused_when_asked(http: httpx.Client, store: redis_py.Redis) -> None:
    bad = {"lines": [{"sku": "a", "count": 1}, {"sku": "b", "count": 0}]}
    found = problem(http.post(f"{ORDERS}?validate=true", json=bad), 422, "invalid")
    assert found["errors"] == [
        {"pointer": "#/order_id", "detail": "Field required"},
        {"pointer": "#/lines/1/count", "detail": "Input should be greater than 0"},
    ]
    found = problem(http.post(f"{ORDERS}?validate=true", json={"fields": {"order_id": "x"}}), 422, "invalid")
    assert [one["pointer"] for one in found["errors"]] == ["#/fields/order_id"]
    batch = [{"order_id": 1}, {"order_id": 2}, {"order_id": []}]
    found = problem(http.post(f"{ORDERS}:batch?validate=true", json=batch), 422, "invalid")
    assert [one["pointer"] for one in found["errors"]] == ["#/2/order_id"]
    found = problem(http.post(f"{ORDERS}?validate=yes", json=bad), 422, "invalid")
    assert found["errors"][0]["parameter"] == "validate"
    assert store.dbsize() == 0

    good = {"order_id": "12", "lines": [{"sku": "a", "count": 1}]}
    assert http.post(f"{ORDERS}?validate=true", json=good).status_code == 202
    assert http.post(f"{MESSAGES}?validate=true", json={"any": "thing"}).status_code == 202
    assert http.post(f"{ORDERS}?validate=false", json=bad).status_code == 202


def test_a_cloud_event_is_stored_once_however_it_is_sent(http: httpx.Client, store: redis_py.Redis) -> None:
    data = {"order_id": 1}
    first = http.post(ORDERS, json={**EVENT, "data": data}, headers=STRUCTURED)
    headers = {f"ce-{name}": value for name, value in EVENT.items()}
    again = http.post(ORDERS, json={**EVENT, "data": data}, headers=STRUCTURED)
    assert (first.status_code, again.status_code) == (202, 202), again.text
    assert again.headers["idempotency-replayed"] == "true" and again.json() == first.json()
    assert store.xrange("orders") == [(first.json()["id"], {"order_id": "1", **CE})]
    binary = http.post(ORDERS, json=data, headers={**headers, "ce-id": "8"})
    told = {**CE, "ce_id": "8", "ce_datacontenttype": "application/json"}
    assert store.xrange("orders")[1:] == [(binary.json()["id"], {"order_id": "1", **told})]
    problem(
        http.post(ORDERS, json={**EVENT, "data": {"order_id": 2}}, headers=STRUCTURED), 422, "idempotency-key-reused"
    )
    many = http.post(
        f"{MESSAGES}:batch", json=[EVENT, {**EVENT, "id": "9"}],
        headers={"content-type": "application/cloudevents-batch+json"},
    )  # fmt: skip
    assert [fields["ce_id"] for _, fields in store.xrange(STREAM)] == ["7", "9"] and many.json()["count"] == 2


def test_an_event_that_breaks_the_specification_is_refused(http: httpx.Client, store: redis_py.Redis) -> None:
    found = problem(http.post(ORDERS, json={**EVENT, "id": ""}, headers=STRUCTURED), 422, "invalid")
    assert found["errors"][0]["pointer"] == "#/id"
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/x"}
    found = problem(http.post(ORDERS, json={"n": 1}, headers=headers), 422, "invalid")
    assert found["errors"][0]["parameter"] == "ce-type"
    wrong = {**EVENT, "data": {"order_id": "x"}}
    found = problem(http.post(f"{ORDERS}?validate=true", json=wrong, headers=STRUCTURED), 422, "invalid")
    assert found["errors"][0]["pointer"] == "#/data/order_id"
    assert store.dbsize() == 0


def test_the_trace_of_a_request_goes_on_in_its_messages(http: httpx.Client, store: redis_py.Redis) -> None:
    headers = {"traceparent": TRACEPARENT, "tracestate": "x=1"}
    http.post(MESSAGES, json={"n": 1}, headers=headers)
    http.post(f"{MESSAGES}:batch", json=[{"n": 1}, {"traceparent": "own"}], headers={"traceparent": TRACEPARENT})
    for wrong in ("00-0-0-01", TRACEPARENT.upper(), "00-" + "0" * 32 + "-b7ad6b7169203331-01"):
        http.post(MESSAGES, json={"n": 1}, headers={"traceparent": wrong})
    assert [fields for _, fields in store.xrange(STREAM)] == [
        {"n": "1", **headers}, {"n": "1", "traceparent": TRACEPARENT}, {"traceparent": "own"}, *[{"n": "1"}] * 3,
    ]  # fmt: skip


def test_only_the_streams_in_the_settings_are_written_to(http: httpx.Client, store: redis_py.Redis) -> None:
    for path in ("", ":batch"):
        found = problem(http.post(f"/v1/streams/order/messages{path}", json=[{"n": 1}]), 403, "stream-not-allowed")
        assert "did you mean 'orders'" in found["detail"], found["detail"]
    assert store.dbsize() == 0
    assert http.post("/v1/streams/events:other/messages", json={"n": 1}).status_code == 202


def test_a_backlog_that_is_too_long_refuses_more(shop: Service, store: redis_py.Redis) -> None:
    for _ in range(101):
        store.xadd("orders", {"order_id": 1})

    def refused() -> httpx.Response | None:
        answer = shop.http.post(ORDERS, json={"order_id": 1})
        return answer if answer.status_code == 429 else None

    answer = eventually(refused)
    assert "limit is 100" in problem(answer, 429, "backlog")["detail"]
    assert int(answer.headers["retry-after"]) >= 1
    assert shop.patient.post(MESSAGES, json={"n": 1}).status_code == 202
    store.delete("orders")
    eventually(lambda: shop.patient.post(ORDERS, json={"order_id": 1}).status_code == 202)


def test_lines_are_read_while_they_arrive(http: httpx.Client, store: redis_py.Redis) -> None:
    text = "".join(f'{{"n": {n}, "text": "{"ä" * n}"}}\r\n' for n in range(50)).encode()
    pieces = iter([text[at : at + 7] for at in range(0, len(text), 7)])
    answer = http.post(f"{MESSAGES}:batch", content=pieces, headers=NDJSON)
    assert answer.json()["count"] == 50
    assert [result["id"] for result in answer.json()["results"]] == answer.json()["ids"]
    assert {result["outcome"] for result in answer.json()["results"]} == {"stored"}
    assert [fields["text"] for _, fields in store.xrange(STREAM)] == ["ä" * n for n in range(50)]


def test_all_bad_messages_of_a_batch_are_named(http: httpx.Client, store: redis_py.Redis) -> None:
    found = problem(http.post(f"{MESSAGES}:batch", json=[{"n": 1}, {}, 3, {"fields": {}}]), 422, "invalid")
    assert [one["pointer"] for one in found["errors"]] == ["#/1", "#/2", "#/3/fields"]
    assert store.dbsize() == 0
