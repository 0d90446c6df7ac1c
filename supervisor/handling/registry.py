"""`@handler`: declares which messages a function handles, and how.

1. The declaration is stored on the function, where `functools.wraps` copies it to a decorator's wrapper, and found by
   `supervisor.handling.loader`. The function itself is unchanged, so a test can call it.
2. It is noted in the module, too: a handler that no name of the module leads to is an error and not overlooked.
3. A wrong declaration fails at import with its file and line.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from typing_extensions import Unpack

from supervisor.core.options import FUNCTION_OPTIONS, HANDLER_OPTIONS, NEEDS
from supervisor.errors import HandlerError
from supervisor.handling.middleware import Middleware, read_middleware
from supervisor.settings.model import HandlerOptions
from supervisor.text import did_you_mean, is_unicode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import FrameType

    from supervisor.handling.handler_types import Declare
    from supervisor.handling.middleware import AnyMiddleware
    from supervisor.messages import Message

#: The attribute of a function with its declarations.
ATTRIBUTE = "__supervisor_handlers__"
#: The variable of a module with all that was declared in it.
DECLARED = "__supervisor_declared__"
#: Callables that take no attribute, with their declarations.
_unmarked: list[tuple[object, Declaration]] = []
#: The keys of a group with this name would be the idempotency keys of the stream.
_RESERVED_GROUPS = {"idempotency"}


class DeclaredOptions(TypedDict, total=False):
    """The options of `@handler`; `[stream."..."]` in config.toml overrides them."""

    max_deliveries: int
    timeout_s: float
    concurrency: int
    batch_size: int
    retry_base_s: float
    retry_max_s: float
    start: str
    run_in: Literal["thread", "process"]
    max_tasks: int
    key: str | Callable[[Message], str | int | None]
    per_key: int
    on_dead: Literal["skip", "halt"]
    group_concurrency: int
    rate: str
    rate_key: str | Callable[[Message], str | int | None]
    rate_cost: str | Callable[[Message], float]


@dataclass(frozen=True, slots=True)
class Declaration:
    """One use of `@handler`."""

    stream: str
    group: str
    options: DeclaredOptions
    #: Around this handler, the outermost first.
    middleware: tuple[Middleware, ...]
    #: `file:line` of the decorator.
    where: str
    #: `class X` or `function x` around the decorator; empty at the top of a module.
    scope: str = ""


def handler(
    stream: str, *, group: str, middleware: Sequence[AnyMiddleware] = (), **options: Unpack[DeclaredOptions]
) -> Declare:
    """Declare that the function handles the messages of `stream` as a member of `group`.

    The annotation of the first parameter says what it gets: a pydantic model, a dataclass, a TypedDict,
    `dict[str, str]`, `Message`, or a `list[...]` of one of these for batches. A second parameter that is annotated
    `Message` (for batches `list[Message]`) gets the message as well. Returning means done, and what is returned as
    `Emit` is published with the ack; raising means retry with backoff, then dead letter. Options: max_deliveries,
    timeout_s, concurrency (per worker), batch_size, retry_base_s, retry_max_s, start ("0" or "$"), run_in ("thread" or
    "process", for a plain `def`), max_tasks (calls after which such a process is replaced).

    Limits over the whole group, on all workers of all hosts: with `key` (a field's name or a function of the Message),
    messages with the same key run one after another, in the order of the stream; per_key (1) lets that many run at
    once; on_dead ("skip" or "halt") says whether the key goes on after a dead letter. group_concurrency is the number
    of messages of the group that may run at once. rate ("100/m") limits how many start: rate_key gives each value of a
    field or function a rate of its own, and rate_cost says how much of the rate a message takes.

    `middleware` are functions `async def timing(message: Message, call_next: Next) -> None` around this handler, inside
    those that config.toml names for all; the first one is the outermost.

    The function may have decorators above and below `@handler`, if they use `functools.wraps`. It needs a name in its
    module: a method, or a function inside of another one, is refused.

    Raises HandlerError for an unknown option or a value that is out of range.
    """
    caller = sys._getframe(1)
    where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    _check_name(where, "stream", stream)
    _check_name(where, "group", group)
    if group in _RESERVED_GROUPS:
        raise HandlerError(f"{where}: group {group!r} is reserved; choose another name")
    _check_options(where, dict(options))
    declaration = Declaration(stream, group, options, _read_middleware(middleware, where), where, scope_of(caller))
    module = _module_frame(caller).f_globals

    def declare(function: Any) -> Any:
        _check_callable(function, declaration)
        declared = [*own_declarations(function), declaration]
        try:
            setattr(function, ATTRIBUTE, declared)
        except (AttributeError, TypeError):  # a bound method, a function written in C
            _unmarked.append((function, declaration))
        module.setdefault(DECLARED, []).append((declaration, function))
        return function

    return declare


def _read_middleware(given: object, where: str) -> tuple[Middleware, ...]:
    if not isinstance(given, list | tuple):
        raise HandlerError(f"{where}: middleware = {given!r} must be a list of functions")
    return tuple(read_middleware(one, where) for one in given)


def own_declarations(value: object) -> list[Declaration]:
    """Return the declarations of a callable, without asking a proxy for attributes that it may invent."""
    declarations = inspect.getattr_static(value, ATTRIBUTE, None)
    if isinstance(declarations, list):
        return declarations
    return [declaration for function, declaration in _unmarked if function is value]


def _check_callable(function: object, declaration: Declaration) -> None:
    where, scope = declaration.where, declaration.scope
    if isinstance(function, type):
        raise HandlerError(
            f"{where}: {function.__qualname__} is a class; decorate a function, or write"
            f" `name = handler(...)({function.__name__}())` for an object with a method __call__"
        )
    name = getattr(function, "__qualname__", None) or repr(function)
    if scope.startswith("class "):
        raise HandlerError(
            f"{where}: {name} is a method of {scope}, and there is no object to call it on; decorate a function of the"
            " module, or write `name = handler(...)(object.method)` at the end of the module"
        )
    if not callable(function):
        raise HandlerError(f"{where}: {name} can't be called; a handler is a function")


def scope_of(frame: FrameType) -> str:
    """Return `class X` or `function x`, the innermost one in which `@handler` stands; empty at the module's top."""
    scope = ""
    at: FrameType | None = frame
    while at is not None and at.f_code.co_name != "<module>":
        if not at.f_code.co_flags & inspect.CO_NEWLOCALS and "__qualname__" in at.f_locals:
            return f"class {at.f_code.co_name}"
        scope = scope or f"function {at.f_code.co_name}"
        at = at.f_back
    return scope


def _module_frame(frame: FrameType) -> FrameType:
    """Return the frame of the module that is being imported; without one, the outermost frame."""
    while frame.f_code.co_name != "<module>" and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _check_name(where: str, what: str, value: object) -> None:
    if not isinstance(value, str) or not value or any(ord(c) < 32 for c in value):  # noqa: PLR2004 - control characters
        raise HandlerError(f"{where}: {what} must be a non-empty string without control characters, not {value!r}")
    if not is_unicode(value):  # a lone surrogate: it has no form in UTF-8, and Redis can't be given it
        raise HandlerError(f"{where}: {what} must be Unicode, not {value!r}")


def _check_options(where: str, options: dict[str, Any]) -> None:
    errors = []
    for name, value in options.items():
        if name not in HANDLER_OPTIONS:
            hint = did_you_mean(name, HANDLER_OPTIONS)
            errors.append(f"{where}: unknown option {name!r}{hint} (known: {', '.join(HANDLER_OPTIONS)})")
            continue
        try:
            _check_option(name, value)
        except ValueError as error:
            errors.append(f"{where}: option {name} = {value!r}: {error}")
    for name, needed in NEEDS.items():
        if options.get(name) and not options.get(needed):
            errors.append(f"{where}: option {name} = {options[name]!r} needs option {needed}")
    if errors:
        raise HandlerError("\n".join(errors))


def _check_option(name: str, value: Any) -> None:
    """Raise ValueError for a value that is not allowed."""
    if name not in FUNCTION_OPTIONS or isinstance(value, str):
        HandlerOptions.declared[name].kind.check(value)
        return
    if not callable(value):
        raise ValueError("must be the name of a field or a function of the message")
    if inspect.iscoroutinefunction(value):
        raise ValueError("must be a plain function, not an async one: it runs for each message before its handler")
    try:
        inspect.signature(value).bind(None)
    except TypeError:
        raise ValueError("must take the message as its only argument") from None
    except ValueError:  # a function written in C, without a signature
        return
