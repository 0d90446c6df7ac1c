"""Tracing and error reports with the real packages: what they record of handlers, publishes and requests."""

from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from pydantic import BaseModel

from supervisor import BatchError, Emit, Message, Reject, Retry, context, handler
from supervisor.contrib.opentelemetry import RequestContext, instrument_publishers, tracing
from supervisor.contrib.sentry import errors
from supervisor.publisher import trace_publishes
from supervisor.testing import TestPool

_exporter, _reader = InMemorySpanExporter(), InMemoryMetricReader()


class Event(BaseModel):
    n: int


@pytest.fixture(scope="module", autouse=True)
def sdk() -> None:
    """OpenTelemetry's providers are those of the process, and can be set once."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(_exporter))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([_reader]))


@pytest.fixture
def spans() -> Iterator[Any]:
    _exporter.clear()
    instrument_publishers()
    yield lambda: {span.name: span for span in _exporter.get_finished_spans()}
    trace_publishes(None)


@handler("first", group="g", middleware=[tracing])
async def chain(event: Event) -> None:
    await context().publisher.publish("second", {"n": event.n})


@handler("first", group="g", middleware=[tracing])
async def emits(event: Event) -> Emit:
    return Emit("second", {"n": event.n})


@handler("second", group="g", middleware=[tracing], max_deliveries=1)
def last(message: Message) -> None:
    assert message.fields["traceparent"]
    raise ValueError("no")


@handler("second", group="batch", middleware=[tracing])
async def batch(messages: list[Message]) -> None: ...


@pytest.mark.parametrize("first", [chain, emits])
async def test_a_trace_goes_through_publisher_message_and_handler(spans: Any, first: Any) -> None:
    async with TestPool(first, last) as pool:
        with trace.get_tracer("test").start_as_current_span("request") as request:
            published = await pool.publish("first", {"n": 1})
        await pool.settled()
        (letter,) = await pool.dead_letters()
    found = spans()
    parents = {name: span.parent and span.parent.span_id for name, span in found.items()}
    assert parents == {
        "request": None,
        "send first": request.get_span_context().span_id,
        "process first": found["send first"].context.span_id,
        "send second": found["process first"].context.span_id,
        "process second": found["send second"].context.span_id,
    }
    assert {span.context.trace_id for span in found.values()} == {request.get_span_context().trace_id}
    assert [found[name].kind for name in ("send first", "process first")] == [SpanKind.PRODUCER, SpanKind.CONSUMER]
    assert dict(found["process first"].attributes) == {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "first",
        "messaging.consumer.group.name": "g",
        "messaging.message.id": published.id,
    }
    assert found["send first"].attributes["messaging.message.id"] == published.id
    failed = found["process second"]
    assert (failed.status.status_code.name, failed.attributes["error.type"]) == ("ERROR", "ValueError")
    assert letter.fields["traceparent"].split("-")[2] == f"{found['send second'].context.span_id:016x}"


async def test_a_batch_links_to_each_publish(spans: Any) -> None:
    async with TestPool(batch) as pool:
        await pool.publish("second", {"n": 0})
        await pool.publisher.publish_batch("second", [{"n": "1"}, {"n": "2"}])
        for number in range(50):
            await pool.publish("second", {"n": number})
        await pool.settled()
    several = [span for span in _exporter.get_finished_spans() if "messaging.batch.message_count" in span.attributes]
    sent = [span for span in several if span.name == "send second"]
    assert [span.attributes["messaging.batch.message_count"] for span in sent] == [2]
    for span in several:
        if span.name == "process second":
            assert len(span.links) == span.attributes["messaging.batch.message_count"]


async def test_the_metrics_have_the_conventions_names(spans: Any) -> None:
    async with TestPool(chain) as pool:
        await pool.publish("first", {"n": 1})
        await pool.settled()
    data: Any = _reader.get_metrics_data()
    names = {
        metric.name
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert names == {
        "messaging.client.sent.messages",
        "messaging.client.operation.duration",
        "messaging.client.consumed.messages",
        "messaging.process.duration",
    }


async def test_a_key_counts_the_same_message_in_another_trace(spans: Any) -> None:
    async with TestPool(chain) as pool:
        one = await pool.publish("first", {"n": 1}, key="k")
        with trace.get_tracer("test").start_as_current_span("another"):
            again = await pool.publish("first", {"n": 1}, key="k")
        assert (again.id, again.replayed) == (one.id, True)
        await pool.settled()


async def test_a_request_gives_its_context_to_what_it_publishes(spans: Any) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with TestPool(last) as pool:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await pool.publish("second", {"n": 1})

        scope = {"type": "http", "headers": [(b"traceparent", parent.encode())]}
        await RequestContext(app)(scope, None, None)
        await pool.settled()
    sent = spans()["send second"]
    assert f"{sent.parent.span_id:016x}" == "b7ad6b7169203331"


async def test_without_a_tracer_messages_are_as_they_were() -> None:
    async with TestPool(chain) as pool:
        trace_publishes(None)
        published = await pool.publish("first", {"n": 1})
        ((_, fields),) = await pool.redis.xrange("first", published.id, published.id)
    assert fields == {b"n": b"1"}
    trace_publishes(None)


@pytest.fixture
def events() -> Iterator[list[Any]]:
    found: list[Any] = []

    def keep(event: Any, hint: Any) -> None:
        found.append(event)

    sentry_sdk.init("http://key@127.0.0.1:9/1", before_send=keep, default_integrations=False)
    yield found
    sentry_sdk.init()


@handler("orders", group="g", middleware=[errors], max_deliveries=1)
async def order(event: Event) -> None:
    raised = {1: ValueError("one"), 2: Reject("two"), 3: Retry("three")}
    if event.n in raised:
        raise raised[event.n]


@handler("orders", group="batch", middleware=[errors], max_deliveries=1)
async def orders(messages: list[Message]) -> None:
    raised = {"1": ValueError("one"), "2": Reject("two")}
    raise BatchError({m.id: raised[m.fields["n"]] for m in messages if m.fields["n"] in raised})


@pytest.mark.parametrize("function", [order, orders])
async def test_sentry_gets_what_handlers_did_not_choose(events: list[Any], function: Any) -> None:
    async with TestPool(function) as pool:
        ids = [(await pool.publish("orders", {"n": number})).id for number in range(4)]
        await pool.settled()
    (event,) = events
    assert event["exception"]["values"][0]["type"] == "ValueError"
    assert event["contexts"]["message"] == {"id": ids[1], "attempt": 1}
    assert event["tags"]["messaging.destination.name"] == "orders"
    assert event["transaction"] == f"orders {'g' if function is order else 'batch'}"


async def test_a_message_that_does_not_decode_is_reported(events: list[Any]) -> None:
    async with TestPool(order) as pool:
        await pool.publish("orders", {"n": "odd"})
        await pool.settled()
    assert events[0]["exception"]["values"][0]["type"] == "DecodeError"
