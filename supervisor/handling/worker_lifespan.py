"""`@worker_lifespan`: what a worker opens before its first message and closes after its last one."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from supervisor.errors import HandlerError
from supervisor.handling.registry import scope_of

if TYPE_CHECKING:
    from types import ModuleType

#: The attribute of a function that was declared, with its `file:line`.
ATTRIBUTE = "__supervisor_lifespan__"
#: The variable of a module with all that were declared in it.
DECLARED = "__supervisor_lifespans__"

Function = TypeVar("Function", bound=Callable[[], AsyncIterator[Any]])


@dataclass(frozen=True, slots=True)
class Lifespan:
    """A function that runs around the life of each worker."""

    #: `module.function`, as logs name it.
    name: str
    where: str
    function: Callable[[], AsyncIterator[Any]]


def worker_lifespan(function: Function) -> Function:
    """Run an async generator around the life of each worker: entered before its first message, left after its last.

    What it yields is `context().state` in handlers: a dict, as each of several lifespans adds to it, or any object if
    there is one lifespan. It runs in the worker's process and event loop, so it is the place for connection pools and
    models. A worker whose lifespan fails ends with exit code 1 and is started again with backoff.

    Raises HandlerError for anything but an async generator function without parameters.
    """
    caller = sys._getframe(1)
    where = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    name = getattr(function, "__qualname__", repr(function))
    if not inspect.isasyncgenfunction(inspect.unwrap(function)):
        raise HandlerError(
            f"{where}: @worker_lifespan of {name}: write `async def {getattr(function, '__name__', 'resources')}() ->"
            " AsyncIterator[dict[str, object]]` with one `yield` in it"
        )
    required = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if required:
        raise HandlerError(f"{where}: @worker_lifespan of {name}: nothing is passed for parameter {required[0]!r}")
    if scope := scope_of(caller):
        raise HandlerError(f"{where}: @worker_lifespan of {name} stands in {scope}: define it at the top of the module")
    setattr(function, ATTRIBUTE, where)
    caller.f_globals.setdefault(DECLARED, []).append(function)
    return function


def lifespans_in(modules: Iterable[ModuleType]) -> list[Lifespan]:
    """Return the lifespans of these modules in their order. Raises HandlerError for one that has lost its name."""
    lifespans: dict[str, Lifespan] = {}
    for module in modules:
        for function in _declared_in(module):
            where = inspect.getattr_static(function, ATTRIBUTE)
            lifespans[where] = Lifespan(f"{function.__module__}.{function.__qualname__}", where, function)
    return list(lifespans.values())


def lifespans_of(functions: Iterable[Callable[..., Any]]) -> list[Lifespan]:
    """Return the lifespans of the modules that these functions come from."""
    names = dict.fromkeys(getattr(function, "__module__", "") for function in functions)
    return lifespans_in([sys.modules[name] for name in names if name in sys.modules])


def _declared_in(module: ModuleType) -> Iterator[Callable[[], AsyncIterator[Any]]]:
    values = [value for value in vars(module).values() if inspect.isfunction(value)]
    for value in values:
        if inspect.getattr_static(value, ATTRIBUTE, None):
            yield value
    known = {getattr(value, ATTRIBUTE, None) for value in values}
    for function in vars(module).get(DECLARED, []):
        if getattr(function, ATTRIBUTE) not in known:
            raise HandlerError(
                f"{getattr(function, ATTRIBUTE)}: @worker_lifespan of {function.__qualname__} is lost, since its name"
                " stands for something else by now: give it a name of its own"
            )
