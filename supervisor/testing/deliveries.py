"""`deliver`: gives one message to a handler, as a worker would, and says how the delivery ends."""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from contextvars import copy_context
from pathlib import Path
from typing import Any, TypedDict, overload

from typing_extensions import Unpack

from supervisor.broker.connect import client
from supervisor.context import Context, Held, enter, in_hand
from supervisor.core.batch_results import batch_results
from supervisor.core.emit import Emit, emits_in
from supervisor.core.encode import fields_of
from supervisor.core.outcome import Dead as GivenUp
from supervisor.core.outcome import outcome_of
from supervisor.errors import HandlerTimeoutError, UsageError
from supervisor.handling.loader import HandlerSpec
from supervisor.handling.middleware import compose
from supervisor.messages import Message
from supervisor.testing.embedded_server import database_url, empty, state_folder
from supervisor.testing.outcomes import Dead, Done, Emitted, Outcome, Retried
from supervisor.testing.project import settings_of, specs_among
from supervisor.worker.lifespans import WorkerLifespans
from supervisor.worker.thread_calls import call_plain

Handler = Callable[..., Any]
#: Ids of delivered messages, in the order of a batch.
_ID = "1700000000000-{}"
#: No jitter: the middle of the range.
_MIDDLE = 0.5


class Options(TypedDict, total=False):
    """The options of `deliver`."""

    #: Which delivery it is, from 1.
    attempt: int
    #: Chooses among several `@handler` on one function.
    group: str
    #: `context().state`; without it, the project's `@worker_lifespan` runs.
    state: Any
    #: The `[app]` table.
    app: dict[str, Any]
    #: The path of a config.toml, whose options of handlers, middleware and `[app]` count.
    config: Path | str | None


class LazyContext(Context):
    """A context that starts the test's server when its handler asks for Redis or the publisher."""

    __slots__ = ("_url",)
    _url: str

    @property
    def redis_url(self) -> str:
        """The URL of an empty database."""
        if not self._url:
            self._url = database_url()
        return self._url

    @redis_url.setter
    def redis_url(self, url: str) -> None:
        self._url = url

    @property
    def used_url(self) -> str:
        """The URL, if it was asked for."""
        return self._url


@overload
async def deliver(handler: Handler, fields: list[Any], **options: Unpack[Options]) -> list[Outcome]: ...
@overload
async def deliver(handler: Handler, fields: Any, **options: Unpack[Options]) -> Outcome: ...


async def deliver(handler: Handler, fields: Any, **options: Unpack[Options]) -> Outcome | list[Outcome]:
    """Decode `fields`, run the middleware and the handler, and return `Done`, `Retried` or `Dead`.

    `fields` is what would be published: a mapping, a model or a dataclass. A batch handler also takes a list of them;
    then the result is a list. `options` are those of `Options`.

    `context()` works in the handler. Redis and the publisher are those of a real server, which is started when they
    are used; what was published, or returned as `Emit`, is `emitted` of the outcome.
    """
    settings = settings_of(options.get("config"), options.get("app"))
    spec = _spec(specs_among(settings, [handler]), options.get("group", ""))
    many = isinstance(fields, list)
    if many and not spec.batch:
        raise UsageError(f"{spec.name} takes one message: give its fields, not a list")
    given = list(fields) if many else [fields]
    attempt = options.get("attempt", 1)
    messages = [_message(spec, one, _ID.format(at), attempt) for at, one in enumerate(given)]
    context = LazyContext(settings.app, state_folder(), "test:0", "")
    surroundings = copy_context()
    surroundings.run(enter, context)
    surroundings.run(in_hand.set, Held(messages))
    work = _deliver(spec, messages, context, options.get("state"))
    outcomes = await asyncio.get_running_loop().create_task(work, context=surroundings)
    return outcomes if many else outcomes[0]


async def _deliver(spec: HandlerSpec, messages: list[Message], context: LazyContext, state: Any) -> list[Outcome]:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_close, context)
        if state is None:
            lifespans = WorkerLifespans([spec])
            state = await lifespans.enter()
            stack.push_async_callback(lifespans.leave)
        context.state = state
        error, emits = await _call(spec, messages)
        results = list(batch_results(messages, error)) if error and spec.batch else [(one, error) for one in messages]
        if any(own is None for _, own in results):
            for emit in emits:
                await context.publisher.publish_batch(emit.stream, [emit.fields])
        emitted = await _emitted(context.used_url) if context.used_url else ()
        return [_outcome(spec, message, own, emitted) for message, own in results]


async def _call(spec: HandlerSpec, messages: list[Message]) -> tuple[BaseException | None, list[Emit]]:
    """Call the handler; return what it raised, and what it returned to be published."""
    emits: list[Emit] = []
    function: Callable[[Any], Awaitable[Any]] = spec.function
    if not spec.is_async:

        def function(argument: Any) -> Awaitable[Any]:
            return asyncio.to_thread(call_plain, spec.function, argument)

    async def noted(argument: Any) -> None:
        emits.extend(emits_in(await function(argument)))

    return await _error_of(spec, messages, noted), emits


async def _error_of(
    spec: HandlerSpec, messages: list[Message], function: Callable[[Any], Awaitable[None]]
) -> BaseException | None:
    call = compose(spec.middleware, spec.decode, function, batch=spec.batch)
    limit = asyncio.timeout(spec.options.timeout_s)
    try:
        async with limit:
            await call(messages if spec.batch else messages[0])
    except TimeoutError as error:
        if limit.expired():
            return HandlerTimeoutError(f"not done within timeout_s = {spec.options.timeout_s:g}")
        return error
    except BaseException as error:
        # A worker retries whatever a handler raises, `sys.exit()` too; the test's own end is not the handler's.
        if isinstance(error, KeyboardInterrupt | GeneratorExit) or _is_being_cancelled():
            raise
        return error
    return None


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _outcome(spec: HandlerSpec, message: Message, error: BaseException | None, emitted: tuple[Emitted, ...]) -> Outcome:
    if error is None:
        return Done(emitted)
    decided = outcome_of(error, message.failures, spec.options, lambda: _MIDDLE)
    if isinstance(decided, GivenUp):
        return Dead(decided.reason, error, emitted)
    return Retried(round(decided.delay_s, 6), error, emitted)


def _spec(specs: list[HandlerSpec], group: str) -> HandlerSpec:
    candidates = [spec for spec in specs if not group or spec.group == group]
    if len(candidates) != 1:
        groups = ", ".join(repr(spec.group) for spec in specs)
        raise UsageError(f"deliver: which handler of {specs[0].name}? group= is one of {groups}")
    return candidates[0]


def _message(spec: HandlerSpec, fields: Any, message_id: str, attempt: int) -> Message:
    if isinstance(fields, Message):
        return copy.copy(fields)
    encoded = fields_of(fields) if fields != {} else {}
    message = Message(message_id, spec.stream, spec.group, deliveries=attempt)
    message.flat = [part.encode() if isinstance(part, str) else part for pair in encoded.items() for part in pair]
    return message


async def _emitted(url: str) -> tuple[Emitted, ...]:
    """Return the entries of all streams, in the order of their ids."""
    redis: Any = client(url)
    emitted = []
    try:
        async for key in redis.scan_iter(_type="stream"):
            for entry, fields in await redis.xrange(key):
                order = tuple(int(part) for part in entry.split(b"-"))
                decoded = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
                emitted.append((order, Emitted(key.decode(), entry.decode(), decoded)))
    finally:
        await redis.aclose()
    return tuple(one for _, one in sorted(emitted, key=lambda pair: (pair[0], pair[1].stream)))


async def _close(context: LazyContext) -> None:
    await context.aclose()
    if context.used_url:
        await empty(context.used_url)
