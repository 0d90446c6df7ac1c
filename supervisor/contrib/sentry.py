"""Sentry: reports what handlers raise, with the stream, the group and the message's id, but not its fields.

    middleware = ["supervisor.contrib.sentry:errors"]       # config.toml

Call `sentry_sdk.init(...)` in a `@worker_lifespan`: it starts threads. `Retry` and `Reject` are not reported.
"""

from supervisor.errors import HandlerError
from supervisor.handling.middleware import NextBatch
from supervisor.messages import BatchError, DecodeError, Message, Reject, Retry

try:
    import sentry_sdk
except ImportError:
    raise HandlerError(
        "supervisor.contrib.sentry needs Sentry: pip install 'redis-streams-supervisor[sentry]'"
    ) from None

#: Ids of a batch that are reported.
_IDS_MAX = 10


async def errors(messages: list[Message], call_next: NextBatch) -> None:
    """Report what the handler raises, each in a scope of its own."""
    first = messages[0]
    with sentry_sdk.isolation_scope() as scope:
        scope.set_transaction_name(f"{first.stream} {first.group}", source="task")
        scope.set_tag("messaging.destination.name", first.stream)
        scope.set_tag("messaging.consumer.group.name", first.group)
        scope.set_context("message", _described(messages))
        try:
            await call_next(messages)
        except BatchError as error:
            own = {message.id: message for message in messages}
            for message_id, one in error.failed.items():
                with sentry_sdk.new_scope() as inner:
                    inner.set_context("message", _described([own[message_id]] if message_id in own else messages))
                    _report(one)
            raise
        except Exception as error:
            _report(error)
            raise


def _report(error: BaseException) -> None:
    chosen = isinstance(error, Retry | Reject) and not isinstance(error, DecodeError)
    if not chosen:
        sentry_sdk.capture_exception(error)


def _described(messages: list[Message]) -> dict[str, object]:
    if len(messages) == 1:
        return {"id": messages[0].id, "attempt": messages[0].deliveries}
    return {"ids": [message.id for message in messages[:_IDS_MAX]], "count": len(messages)}
