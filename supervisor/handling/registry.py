"""`@handler`: declares which messages a function handles, and how.

The declaration is stored on the function and found by `supervisor.handling.loader`. The function itself is unchanged,
so a test can call it. A wrong declaration fails at import with its file and line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, get_type_hints

from typing_extensions import Unpack

from supervisor.core.options import HANDLER_OPTIONS
from supervisor.errors import HandlerError
from supervisor.settings.model import HandlerOptions
from supervisor.text import did_you_mean

Function = TypeVar("Function", bound=Callable[..., Any])

#: The attribute of a function with its declarations.
ATTRIBUTE = "__supervisor_handlers__"
#: The keys of a group with this name would be the idempotency keys of the stream.
_RESERVED_GROUPS = {"idempotency"}


class DeclaredOptions(TypedDict, total=False):
    """The options of `@handler`; config.toml overrides them."""

    max_deliveries: int
    timeout_s: float
    concurrency: int
    batch_size: int
    retry_base_s: float
    retry_max_s: float
    start: str


@dataclass(frozen=True, slots=True)
class Declaration:
    """One use of `@handler`."""

    stream: str
    group: str
    options: DeclaredOptions
    #: `file:line` of the decorator.
    where: str


def handler(stream: str, *, group: str, **options: Unpack[DeclaredOptions]) -> Callable[[Function], Function]:
    """Declare that the function handles the messages of `stream` as a member of `group`.

    The annotation of the first parameter says what it gets: a pydantic model, a dataclass, a TypedDict,
    `dict[str, str]`, `Message`, or a `list[...]` of one of these for batches. Returning means done;
    raising means retry with backoff, then dead letter. Options: max_deliveries, timeout_s,
    concurrency (per worker), batch_size, retry_base_s, retry_max_s, start ("0" or "$").

    Raises HandlerError for an unknown option or a value that is out of range.
    """
    caller = sys._getframe(1)
    where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    _check_name(where, "stream", stream)
    _check_name(where, "group", group)
    if group in _RESERVED_GROUPS:
        raise HandlerError(f"{where}: group {group!r} is reserved; choose another name")
    _check_options(where, dict(options))
    declaration = Declaration(stream, group, options, where)

    def declare(function: Function) -> Function:
        declared = [*getattr(function, ATTRIBUTE, []), declaration]
        setattr(function, ATTRIBUTE, declared)
        return function

    return declare


def first_parameter(function: Callable[..., Any], where: str) -> object:
    """Return the annotation of the function's first parameter. Raises HandlerError when there is none."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_argcount < 1:
        raise HandlerError(f"{where}: {_name(function)} must take the message as its first parameter")
    if code.co_argcount - len(function.__defaults__ or ()) > 1:
        raise HandlerError(f"{where}: {_name(function)} must take one parameter; the others need defaults")
    name = code.co_varnames[0]
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise HandlerError(
            f"{where}: {_name(function)}: the annotation of {name!r} can't be resolved: {error}"
            " (an import under TYPE_CHECKING is not there at run time)"
        ) from None
    if name not in hints:
        raise HandlerError(f"{where}: {_name(function)}: parameter {name!r} needs an annotation")
    found: object = hints[name]
    return found


def _check_name(where: str, what: str, value: object) -> None:
    if not isinstance(value, str) or not value or any(ord(c) < 32 for c in value):  # noqa: PLR2004 - control characters
        raise HandlerError(f"{where}: {what} must be a non-empty string without control characters, not {value!r}")


def _check_options(where: str, options: dict[str, Any]) -> None:
    errors = []
    for name, value in options.items():
        if name not in HANDLER_OPTIONS:
            hint = did_you_mean(name, HANDLER_OPTIONS)
            errors.append(f"{where}: unknown option {name!r}{hint} (known: {', '.join(HANDLER_OPTIONS)})")
            continue
        try:
            HandlerOptions.fields[name].kind.check(value)
        except ValueError as error:
            errors.append(f"{where}: option {name} = {value!r}: {error}")
    if errors:
        raise HandlerError("\n".join(errors))


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))
