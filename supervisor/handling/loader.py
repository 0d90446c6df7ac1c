"""Imports the handler modules and makes a `HandlerSpec` of each declaration.

It runs once, in the arbiter before the first fork, so that workers share the imported code and the decoders.
Every error is a HandlerError that names file and line.
"""

import pkgutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from pydantic import PydanticUserError

from supervisor.core.options import FUNCTION_OPTIONS, HALT, PROCESS, Options, resolve
from supervisor.errors import HandlerError
from supervisor.handling.decode import Decoder, field_names, make_decoder
from supervisor.handling.discovery import Declared, declarations_in, handlers_in
from supervisor.handling.imports import INIT_HINT, file_of, import_module_of, make_importable
from supervisor.handling.middleware import Middleware, load_middleware
from supervisor.handling.registry import Declaration
from supervisor.handling.signature import (
    awaitable,
    is_coroutine_function,
    is_generator_function,
    name_of,
    read_signature,
    with_message,
)
from supervisor.handling.worker_lifespan import Lifespan, lifespans_in, lifespans_of
from supervisor.keys import dead_key
from supervisor.settings.model import Settings
from supervisor.shared_state import HANDLERS_MAX
from supervisor.text import did_you_mean


@dataclass(frozen=True, slots=True)
class HandlerSpec:
    """A handler as the worker needs it."""

    stream: str
    group: str
    #: `module.function`, as logs and dead letters name it.
    name: str
    #: Called with what `decode` returns, or for a batch with the list of it.
    function: Callable[..., Any]
    decode: Decoder
    #: Called with a list of messages.
    batch: bool
    #: `async def`; else it runs in a thread pool.
    is_async: bool
    options: Options
    where: str
    #: Around the call of the function, the outermost first.
    middleware: tuple[Middleware, ...] = ()
    #: Those of the project, the same for all its handlers.
    lifespans: tuple[Lifespan, ...] = ()


def load_handlers(
    settings: Settings, root: Path, origins: Mapping[str, str] = MappingProxyType({})
) -> list[HandlerSpec]:
    """Return the handlers of the configured modules, in the order of (stream, group).

    `root` (the folder of config.toml) becomes importable. A package's modules with routers of the HTTP service
    are skipped: no worker needs FastAPI. `origins` says where settings come from. Raises HandlerError.
    """
    make_importable(root)
    modules = [module for name in settings.handlers for module in _modules(name, root, settings.router_modules)]
    functions = handlers_in(modules)
    if not functions:
        searched = [f"{name} ({file_of(sys.modules[name])})" for name in settings.handlers]
        raise HandlerError(f"no @handler found in {' and '.join(searched) or 'no module, handlers = []'}; {INIT_HINT}")
    return make_specs(settings, functions, lifespans_in(modules), for_all(settings, root, origins))


def for_all(settings: Settings, root: Path, origins: Mapping[str, str] = MappingProxyType({})) -> list[Middleware]:
    """Return the middleware that the settings name, around all handlers. Raises HandlerError."""
    origin = origins.get("middleware", "")
    return load_middleware(settings.middleware, root, f"{origin}: middleware" if origin else "middleware")


def specs_of(settings: Settings, functions: Iterable[Callable[..., Any]]) -> list[HandlerSpec]:
    """Return the specs of handlers that a program passes itself. Raises HandlerError for what is not a handler."""
    declared: list[Declared] = []
    for function in functions:
        own = list(declarations_in([function]))
        if not own:
            name, code = getattr(function, "__qualname__", repr(function)), getattr(function, "__code__", None)
            place = f"{code.co_filename}:{code.co_firstlineno}: " if code else ""
            raise HandlerError(f"{place}{name} is not a handler: it has no @handler(stream, group=...)")
        declared += own
    lifespans = lifespans_of([function for function, _ in declared])
    return make_specs(settings, declared, lifespans, for_all(settings, Path.cwd()))


def make_specs(
    settings: Settings,
    functions: list[tuple[Callable[..., Any], Declaration]],
    lifespans: Sequence[Lifespan] = (),
    middleware: Sequence[Middleware] = (),
) -> list[HandlerSpec]:
    """Make one spec for each declaration; `lifespans` and `middleware` are those of all handlers.

    Raises HandlerError, also for two handlers of one (stream, group).
    """
    taken: dict[tuple[str, str], tuple[Callable[..., Any], Declaration]] = {}
    for function, declaration in functions:
        key = declaration.stream, declaration.group
        other = taken.setdefault(key, (function, declaration))
        if other[1] is not declaration:
            raise HandlerError(
                f"{declaration.where}: stream {key[0]!r}, group {key[1]!r} already has a handler at {other[1].where};"
                " each message goes to one member of a group, so give one of them its own group"
            )
    if len(taken) > HANDLERS_MAX:
        raise HandlerError(f"{len(taken)} handlers: one pool can have at most {HANDLERS_MAX}; start a second one")
    dead: dict[str, Declaration] = {}
    for stream, group in sorted(taken):
        declaration = taken[stream, group][1]
        other_place = dead.setdefault(dead_key(stream, group), declaration)
        if other_place is not declaration:
            raise HandlerError(
                f"{declaration.where}: stream {stream!r}, group {group!r} would keep its dead letters where"
                f" {other_place.where} does ({dead_key(stream, group)}); rename one of the groups"
            )
    specs = [_spec(settings, *taken[key]) for key in sorted(taken)]
    return [replace(spec, lifespans=tuple(lifespans), middleware=(*middleware, *spec.middleware)) for spec in specs]


def _spec(settings: Settings, function: Callable[..., Any], declaration: Declaration) -> HandlerSpec:
    signature, name = read_signature(function, declaration.where), name_of(function)
    if is_generator_function(function):
        raise HandlerError(f"{declaration.where}: {name} is a generator (it has `yield`), which is not supported")
    options = resolve(settings, declaration.stream, declaration.group, declaration.options)
    if options.run_in == PROCESS and is_coroutine_function(function):
        if declaration.options.get("run_in") == PROCESS:
            raise HandlerError(f'{declaration.where}: {name}: run_in = "process" is for a plain `def`, not `async def`')
        options = replace(options, run_in="thread")
    _check_limits(declaration, options, signature.item)
    try:
        decode = make_decoder(signature.item)
    except TypeError as error:
        raise HandlerError(f"{declaration.where}: {name}: the first parameter's annotation {error}") from None
    except (PydanticUserError, NameError) as error:
        reason = str(error).partition("\n")[0]
        raise HandlerError(
            f"{declaration.where}: {name}: pydantic can't validate {signature.item!r}: {reason}"
        ) from None
    is_async = is_coroutine_function(function)
    if signature.with_message:
        function, decode = with_message(function, decode, batch=signature.batch)
    return HandlerSpec(
        stream=declaration.stream,
        group=declaration.group,
        name=name,
        function=awaitable(function) if is_async else function,
        decode=decode,
        batch=signature.batch,
        is_async=is_async,
        options=options,
        where=declaration.where,
        middleware=declaration.middleware,
    )


def _check_limits(declaration: Declaration, options: Options, item: object) -> None:
    """Raise HandlerError for limits that contradict each other, or name a field that the message can't have."""
    if options.on_dead == HALT and options.key and options.per_key > 1:
        raise HandlerError(
            f'{declaration.where}: on_dead = "{HALT}" needs per_key = 1, not {options.per_key}: a key without an order'
            " has nothing to wait for"
        )
    known = field_names(item)
    for name in FUNCTION_OPTIONS:
        given = getattr(options, name)
        if known and isinstance(given, str) and given and given not in known:
            hint = did_you_mean(given, known)
            raise HandlerError(
                f"{declaration.where}: option {name} = {given!r} is no field of {getattr(item, '__name__', item)}{hint}"
                f" (fields: {', '.join(sorted(known))}); for another field of the entry, give a function of the Message"
            )


def _modules(name: str, root: Path, skip: Collection[str]) -> Iterator[ModuleType]:
    """Import a module, and all modules of a package but those to `skip` and what is below them."""
    module = import_module_of(name, root)
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}."):
        if found.name not in skip:
            yield from _modules(found.name, root, skip)
