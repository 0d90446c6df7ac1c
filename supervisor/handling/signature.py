"""Reads what a handler takes from its signature: one message or a batch, and whether the message comes beside it.

`inspect.signature` sees through `functools.wraps`, partials, bound methods and objects with `__call__`.
"""

import contextlib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from supervisor.errors import HandlerError
from supervisor.handling.decode import Decoder, split_batch
from supervisor.messages import Message

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class HandlerSignature:
    """What a handler is called with."""

    #: The annotation of one item.
    item: object
    #: Called with a list of items.
    batch: bool
    #: The message, or the list of messages, is the second argument.
    with_message: bool


def read_signature(function: Callable[..., Any], where: str) -> HandlerSignature:
    """Return what the handler is called with. Raises HandlerError when the pool could not call it."""
    name = name_of(function)
    try:
        parameters = _parameters(function)
    except (TypeError, ValueError) as error:
        raise HandlerError(
            f"{where}: {name} has no signature that could be read: {error};"
            f" write a function with an annotated parameter that calls {name}, and make that the handler"
        ) from None
    first, others = next(iter(parameters), None), parameters[1:]
    if first is not None and first.kind in _VARIADIC:
        raise HandlerError(
            f"{where}: {name} takes {first}, which says nothing about the message;"
            " in a decorator, write @functools.wraps(function) above the wrapper"
        )
    if first is None or first.kind not in _POSITIONAL:
        raise HandlerError(f"{where}: {name} must take the message as its first parameter")
    if first.annotation is first.empty:
        raise HandlerError(f"{where}: {name}: parameter {first.name!r} needs an annotation")
    batch, item = split_batch(_resolved(function, first, where))
    with_message = False
    if others and others[0].kind in _POSITIONAL:
        with_message = _takes_message(function, others[0], batch, where)
    _check_others(others[with_message:], where, name)
    return HandlerSignature(item, batch, with_message)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the callable's own parameters, or what it wraps takes if it passes on whatever comes.

    A wrapper with other parameters may supply the rest. `functools.wraps` gave it the annotations of the
    function, by name; a first parameter with another name has that function's.
    """
    wrapped = list(inspect.signature(function).parameters.values())
    own = list(inspect.signature(function, follow_wrapped=False).parameters.values())
    if not own or any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in own):
        return wrapped
    if own[0].annotation is inspect.Parameter.empty and wrapped:
        own[0] = own[0].replace(annotation=wrapped[0].annotation)
    return own


def positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that can be given by their position."""
    return [parameter for parameter in _parameters(function) if parameter.kind in _POSITIONAL]


def annotation_of(function: Callable[..., Any], parameter: inspect.Parameter, where: str) -> object:
    """Return what the parameter is annotated with; `Parameter.empty` without an annotation. Raises HandlerError."""
    if parameter.annotation is parameter.empty:
        return parameter.empty
    return _without_none(_resolved(function, parameter, where))


def name_of(function: Callable[..., Any]) -> str:
    """Return `module.function`, as logs and dead letters name a handler."""
    named = function if hasattr(function, "__qualname__") else list(_layers(function))[-1]
    if not hasattr(named, "__qualname__"):
        return repr(function)
    instance = function if not isinstance(function, functools.partial) else function.func
    if named.__name__ == "__call__" and not hasattr(instance, "__qualname__"):
        named = type(instance)
    return f"{named.__module__}.{named.__qualname__}"


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine, also if a plain wrapper passes on the one of an `async def`."""
    return any(inspect.iscoroutinefunction(layer) for layer in _layers(function))


def is_generator_function(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a generator."""
    layers = _layers(function, wrapped=False)
    return any(inspect.isgeneratorfunction(layer) or inspect.isasyncgenfunction(layer) for layer in layers)


def awaitable(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return the function to await: itself, or for a plain wrapper of an `async def` one that awaits its result."""
    if any(inspect.iscoroutinefunction(layer) for layer in _layers(function, wrapped=False)):
        return function

    async def call(argument: Any) -> Any:
        result = function(argument)
        return await result if inspect.isawaitable(result) else result

    return call


def with_message(function: Callable[..., Any], decode: Decoder, *, batch: bool) -> tuple[Callable[[Any], Any], Decoder]:
    """Return a function of one argument, and its decoder, for a handler that takes the message as its second.

    A handler without that parameter is called as it is, so it pays nothing for this.
    """

    def decode_pair(message: Message) -> tuple[Any, Message]:
        return decode(message), message

    @functools.wraps(function, assigned=())
    def call(pair: tuple[Any, Message]) -> Any:
        return function(*pair)

    @functools.wraps(function, assigned=())
    def call_batch(pairs: list[tuple[Any, Message]]) -> Any:
        return function([item for item, _ in pairs], [message for _, message in pairs])

    return call_batch if batch else call, decode_pair


def _layers(function: Any, *, wrapped: bool = True) -> Iterator[Any]:
    """Yield the callable and what it wraps, from the outside in."""
    seen: set[int] = set()
    while function is not None and id(function) not in seen:
        seen.add(id(function))
        yield function
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif wrapped and hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif inspect.isfunction(function) or inspect.isbuiltin(function) or isinstance(function, type):
            return
        else:
            function = getattr(type(function), "__call__", None)  # noqa: B004 - what a call of the object runs


def _takes_message(function: Callable[..., Any], second: inspect.Parameter, batch: bool, where: str) -> bool:
    """Whether the second parameter is for the message. Raises HandlerError for the form of the other kind."""
    if second.annotation is second.empty:
        return False
    annotation = _without_none(_resolved(function, second, where))
    wanted, other = (list[Message], Message) if batch else (Message, list[Message])
    if annotation == other:
        right, kind = ("list[Message]", "a batch") if batch else ("Message", "one message")
        raise HandlerError(
            f"{where}: {name_of(function)} takes {kind}: annotate its second parameter {second.name!r} with {right}"
        )
    return annotation == wanted


def _without_none(annotation: object) -> object:
    """Return `X` for `X | None` and for `Annotated[X, ...]`."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _without_none(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        return _without_none(parts[0]) if len(parts) == 1 else annotation
    return annotation


def _check_others(others: list[inspect.Parameter], where: str, name: str) -> None:
    for parameter in others:
        if parameter.default is parameter.empty and parameter.kind not in _VARIADIC:
            raise HandlerError(
                f"{where}: {name}: nothing is passed for parameter {parameter.name!r}: give it a default;"
                " a second positional parameter annotated Message (for a batch: list[Message]) gets the message"
            )


def _resolved(function: Callable[..., Any], parameter: inspect.Parameter, where: str) -> object:
    """Return the parameter's annotation, evaluated where the innermost function was defined."""
    innermost = list(_layers(function))[-1]
    holder = type("holder", (), {"__annotations__": {parameter.name: parameter.annotation}})
    try:
        names = {**getattr(innermost, "__globals__", {}), **_closure(innermost)}
        annotation: object = typing.get_type_hints(holder, names, include_extras=True)[parameter.name]
    except Exception as error:
        raise HandlerError(
            f"{where}: {name_of(function)}: the annotation of {parameter.name!r} can't be resolved: {error}"
            " (an import under TYPE_CHECKING is not there at run time)"
        ) from None
    return annotation


def _closure(function: Any) -> dict[str, Any]:
    names, cells = getattr(getattr(function, "__code__", None), "co_freevars", ()), getattr(function, "__closure__", ())
    variables = {}
    for name, cell in zip(names, cells or (), strict=False):
        with contextlib.suppress(ValueError):  # a variable that is assigned later
            variables[name] = cell.cell_contents
    return variables
