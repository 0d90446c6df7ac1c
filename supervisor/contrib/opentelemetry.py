"""OpenTelemetry: spans and metrics by the messaging conventions, with the context in the message's own fields.

    middleware = ["supervisor.contrib.opentelemetry:tracing"]       # config.toml

With this line, handlers are traced, publishes are traced and carry `traceparent`, and the HTTP service takes the
`traceparent` of a request. The API of OpenTelemetry does nothing until the project sets up an SDK, best in a
`@worker_lifespan`: its exporters start threads. In other programs, call `instrument_publishers()`.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from supervisor._version import __version__
from supervisor.errors import HandlerError
from supervisor.handling.middleware import NextBatch
from supervisor.messages import Message
from supervisor.publisher import Sending, trace_publishes

try:
    from opentelemetry import context as otel_context
    from opentelemetry import metrics, trace
    from opentelemetry.propagate import extract, inject
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
except ImportError:
    raise HandlerError(
        "supervisor.contrib.opentelemetry needs OpenTelemetry: pip install 'redis-streams-supervisor[otel]'"
    ) from None

Scope = dict[str, Any]

_tracer = trace.get_tracer("supervisor", __version__)
_meter = metrics.get_meter("supervisor", __version__)
_consumed = _meter.create_counter("messaging.client.consumed.messages", "{message}", "Messages given to handlers")
_process_s = _meter.create_histogram("messaging.process.duration", "s", "Duration of a handler's call")
_sent = _meter.create_counter("messaging.client.sent.messages", "{message}", "Messages that were published")
_send_s = _meter.create_histogram("messaging.client.operation.duration", "s", "Duration of a publish")


async def tracing(messages: list[Message], call_next: NextBatch) -> None:
    """Trace a call of a handler: the child of the publish, for a batch with a link to each publish."""
    instrument_publishers()
    first = messages[0]
    shared = _attributes("process", first.stream) | {"messaging.consumer.group.name": first.group}
    contexts = [extract(_carrier(message)) for message in messages]
    if len(messages) == 1:
        parent, links = contexts[0], []
        own: dict[str, Any] = {"messaging.message.id": first.id}
    else:
        spans = [trace.get_current_span(one).get_span_context() for one in contexts]
        parent, links = None, [Link(span) for span in spans if span.is_valid]
        own = {"messaging.batch.message_count": len(messages)}
    began_s = perf_counter()
    with _tracer.start_as_current_span(
        f"process {first.stream}", parent, SpanKind.CONSUMER, shared | own, links,
        record_exception=False, set_status_on_exception=False,
    ) as span:  # fmt: skip
        try:
            await call_next(messages)
        except BaseException as error:
            shared["error.type"] = _note(span, error)
            raise
        finally:
            _consumed.add(len(messages), shared)
            _process_s.record(perf_counter() - began_s, shared)


def instrument_publishers() -> None:
    """Trace what all publishers of this process publish, and have the messages carry the context. May be repeated."""
    trace_publishes(_sending)


@contextmanager
def _sending(stream: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[Sending]:
    """Trace a publish; the messages get the fields of the context, unless they carry one."""
    shared = _attributes("send", stream)
    began_s = perf_counter()
    with _tracer.start_as_current_span(
        f"send {stream}", None, SpanKind.PRODUCER, shared, record_exception=False, set_status_on_exception=False
    ) as span:
        if len(messages) > 1:
            span.set_attribute("messaging.batch.message_count", len(messages))
        carried: dict[str, str] = {}
        inject(carried)
        sending = Sending([{**carried, **fields} for fields in messages])
        try:
            yield sending
        except BaseException as error:
            shared["error.type"] = _note(span, error)
            raise
        finally:
            if len(sending.ids) == 1:
                span.set_attribute("messaging.message.id", sending.ids[0])
            _sent.add(len(messages), shared)
            _send_s.record(perf_counter() - began_s, shared)


class RequestContext:
    """An ASGI middleware: what a request publishes belongs to the trace that its headers name."""

    def __init__(self, app: Callable[[Scope, Any, Any], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Handle a request within the context of its headers."""
        if scope["type"] != "http" or trace.get_current_span().get_span_context().is_valid:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        token = otel_context.attach(extract(headers))
        try:
            await self._app(scope, receive, send)
        finally:
            otel_context.detach(token)


def _attributes(operation: str, stream: str) -> dict[str, Any]:
    return {
        "messaging.system": "redis",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": stream,
    }


def _carrier(message: Message) -> dict[str, str]:
    """Return the fields; those that are not UTF-8 carry no context."""
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in message.raw.items()}


def _note(span: Span, error: BaseException) -> str:
    """Note in the span that it ended with this error; return the error's type."""
    kind = type(error).__qualname__
    span.record_exception(error)
    span.set_status(Status(StatusCode.ERROR, str(error)))
    span.set_attribute("error.type", kind)
    return kind
