"""Middleware: functions around the call of a handler, composed once when a worker prepares the handler.

    async def timing(message: Message, call_next: Next) -> None:
        await call_next(message)

The annotation of the first parameter says what it goes around. `Message`: each message, in a batch too.
`list[Message]`: each call of a handler, which is a list of one for a handler of single messages.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.core.batch_results import batch_results
from supervisor.errors import HandlerError
from supervisor.handling.batch_middleware import check_awaited, each_of_batch
from supervisor.handling.decode import Decoder, as_message
from supervisor.handling.imports import file_of, import_module_of
from supervisor.handling.signature import annotation_of, is_coroutine_function, name_of, positional
from supervisor.messages import BatchError, Message
from supervisor.text import did_you_mean

#: What a middleware calls to go on: the next middleware, and at last the handler.
Next = Callable[[Message], Awaitable[None]]
#: The same for a middleware that takes `list[Message]`.
NextBatch = Callable[[list[Message]], Awaitable[None]]
#: A function that can be given to `@handler(..., middleware=[...])`.
AnyMiddleware = Callable[[Message, Next], Awaitable[None]] | Callable[[list[Message], NextBatch], Awaitable[None]]
#: Called with a message, or for a batch with a list of messages.
Handle = Callable[[Any], Awaitable[Any]]

_FORM = "async def name(message: Message, call_next: Next) -> None"
_ARGUMENTS = 2


@dataclass(frozen=True, slots=True)
class Middleware:
    """A function around the call of a handler."""

    function: Callable[[Any, Any], Awaitable[Any]]
    #: It takes `list[Message]`.
    takes_list: bool


def read_middleware(function: Any, where: str) -> Middleware:
    """Return the middleware, described. Raises HandlerError, which begins with `where`, for anything else."""
    if isinstance(function, type) or not callable(function):
        raise HandlerError(f"{where}: middleware {function!r} is not a function: write `{_FORM}`")
    name, place = name_of(function), place_of(function) or where
    if not is_coroutine_function(function):
        raise HandlerError(f"{place}: middleware {name} is not `async def`: write `{_FORM}` ({where})")
    parameters = positional(function)
    required = [one for one in parameters if one.default is one.empty]
    if len(parameters) < _ARGUMENTS or len(required) > _ARGUMENTS:
        raise HandlerError(
            f"{place}: middleware {name} takes {inspect.signature(function)}; it is called with a message and"
            f" call_next: write `{_FORM}` ({where})"
        )
    annotation = annotation_of(function, parameters[0], place)
    if annotation not in (Message, list[Message], inspect.Parameter.empty, Any):
        raise HandlerError(
            f"{place}: middleware {name}: parameter {parameters[0].name!r} must be annotated Message, or list[Message]"
            f" to go around whole batches ({where})"
        )
    return Middleware(function, takes_list=annotation == list[Message])


def load_middleware(names: Iterable[str], root: Path, setting: str) -> list[Middleware]:
    """Import what the setting `middleware` names. Raises HandlerError that names file and line."""
    loaded_middleware = []
    for text in names:
        module_name, _, name = text.partition(":")
        module = import_module_of(module_name, root, setting)
        function = getattr(module, name, None)
        if function is None:
            known = [key for key, value in vars(module).items() if inspect.iscoroutinefunction(value)]
            hint = did_you_mean(name, known)
            raise HandlerError(f"{setting}: there is no {name!r} in {file_of(module)}{hint}")
        loaded_middleware.append(read_middleware(function, f"{setting} = {text!r}"))
    return loaded_middleware


def compose(chain: Sequence[Middleware], decode: Decoder, function: Handle, *, batch: bool) -> Handle:
    """Return what is awaited with a message, or a batch of them: each middleware around the next, then the handler."""
    if batch:
        handle = _decoded_batch(decode, function)
    else:
        handle = function if decode is as_message else lambda message: function(decode(message))
    for middleware in reversed(chain):
        handle = _around(middleware, handle, batch=batch)
    return handle


def _around(middleware: Middleware, call_next: Handle, *, batch: bool) -> Handle:
    function = middleware.function
    if batch and not middleware.takes_list:
        return lambda messages: each_of_batch(function, messages, call_next)
    if middleware.takes_list and not batch:
        call_in_list = _checked(function, lambda messages: call_next(messages[0]))
        return lambda message: call_in_list([message])
    return _checked(function, call_next)


def _checked(function: Callable[[Any, Any], Awaitable[Any]], call_next: Handle) -> Handle:
    """Return a call of the middleware that raises UsageError if it ends before its `call_next` has."""

    async def call(given: Any) -> Any:
        made: Any = None

        def go_on(passed):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - they would be evaluated each time
            nonlocal made
            made = call_next(passed)
            return made

        result = await function(given, go_on)
        if made is not None and made.cr_frame is not None:  # not a function: this is the hot path
            check_awaited(made, function)
        return result

    return call


def _decoded_batch(decode: Decoder, function: Handle) -> Handle:
    """Return a function that decodes a batch and calls the handler; messages that don't decode fail on their own."""

    async def call(messages: list[Message]) -> None:
        arguments, good, failed = _decode_each(decode, messages)
        try:
            if good:
                await function(arguments)
        except Exception as error:
            if not failed:
                raise
            failed.update((message.id, own) for message, own in batch_results(good, error) if own is not None)
        if failed:
            raise BatchError(failed)

    return call


def _decode_each(decode: Decoder, messages: list[Message]) -> tuple[list[Any], list[Message], dict[str, BaseException]]:
    """Return the arguments, the messages that they are of, and the errors of the other messages."""
    arguments, good, failed = [], [], dict[str, BaseException]()
    for message in messages:
        try:
            arguments.append(decode(message))
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:
            failed[message.id] = error
        else:
            good.append(message)
    return arguments, good, failed


def place_of(function: Any) -> str:
    """Return `file:line` of a function; empty for what has no code."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else ""
