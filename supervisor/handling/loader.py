"""Imports the handler modules and makes a `HandlerSpec` of each declaration.

It runs once, in the arbiter before the first fork, so that workers share the imported code and the decoders.
Every error is a HandlerError that names file and line.
"""

import contextlib
import importlib
import pkgutil
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import PydanticUserError

from supervisor.core.options import Options, resolve
from supervisor.errors import HandlerError
from supervisor.handling.decode import Decoder, make_decoder
from supervisor.handling.discovery import declarations_in, handlers_in
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

_INIT = "`supervisor init` makes an example"
#: Packages that the pool and the commands import late.
_OURS = ("redis.asyncio", "hiredis", "uvloop", "psutil", "orjson", "structlog", "rich")
#: Names of folders with installed packages.
_INSTALLED = ("site-packages", "dist-packages")


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
    #: Those of the project, the same for all its handlers.
    lifespans: tuple[Lifespan, ...] = ()


def load_handlers(settings: Settings, root: Path) -> list[HandlerSpec]:
    """All handlers of the configured modules, in order of (stream, group).

    `root` (the folder of config.toml) becomes importable. A package's modules with routers of the HTTP service
    are skipped: no worker needs FastAPI. Raises HandlerError.
    """
    make_importable(root)
    modules = [module for name in settings.handlers for module in _modules(name, root, settings.router_modules)]
    functions = handlers_in(modules)
    if not functions:
        found = [f"{name} ({_place(sys.modules[name])})" for name in settings.handlers]
        raise HandlerError(f"no @handler found in {' and '.join(found) or 'no module, handlers = []'}; {_INIT}")
    return make_specs(settings, functions, lifespans_in(modules))


def make_importable(root: Path) -> None:
    """Put `root` on the import path, before installed packages and after the standard library.

    The installed packages that the supervisor needs are imported first, so that no module of the project (a folder
    redis/, say) is imported instead of them.
    """
    if (entry := str(root)) in sys.path:
        return
    for name in _OURS:
        with contextlib.suppress(ImportError):  # not on this system; the code that needs it reports it
            importlib.import_module(name)
    installed = (at for at, path in enumerate(sys.path) if Path(path).name in _INSTALLED)
    sys.path.insert(next(installed, len(sys.path)), entry)


def specs_of(settings: Settings, functions: Iterable[Callable[..., Any]]) -> list[HandlerSpec]:
    """Return the handlers among `functions`, for programs that pass functions instead of module names."""
    declared = list(declarations_in(functions))
    return make_specs(settings, declared, lifespans_of([function for function, _ in declared]))


def make_specs(
    settings: Settings, functions: list[tuple[Callable[..., Any], Declaration]], lifespans: Iterable[Lifespan] = ()
) -> list[HandlerSpec]:
    """Make one spec for each declaration. Raises HandlerError, also for two handlers of one (stream, group)."""
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
    return [replace(_spec(settings, *taken[key]), lifespans=tuple(lifespans)) for key in sorted(taken)]


def _spec(settings: Settings, function: Callable[..., Any], declaration: Declaration) -> HandlerSpec:
    signature, name = read_signature(function, declaration.where), name_of(function)
    if is_generator_function(function):
        raise HandlerError(f"{declaration.where}: {name} is a generator (it has `yield`), which is not supported")
    try:
        decode = make_decoder(signature.item)
    except TypeError as error:
        raise HandlerError(f"{declaration.where}: {name}: the first parameter's annotation {error}") from None
    except (PydanticUserError, NameError) as error:
        said = str(error).partition("\n")[0]
        raise HandlerError(f"{declaration.where}: {name}: pydantic can't validate {signature.item!r}: {said}") from None
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
        options=resolve(settings, declaration.stream, declaration.group, declaration.options),
        where=declaration.where,
    )


def _modules(name: str, root: Path, skip: Collection[str]) -> Iterator[ModuleType]:
    module = import_module_of(name, root)
    yield module
    for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."):
        if found.name not in skip:
            yield import_module_of(found.name, root)


def import_module_of(name: str, root: Path, setting: str = "handlers") -> ModuleType:
    """Import a module that `setting` names. Raises HandlerError that names file and line of what is wrong."""
    try:
        return importlib.import_module(name)
    except HandlerError:
        raise
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise missing_module(error.name, root, setting) from None
        raise HandlerError(_import_failure(name, root, error)) from error
    except (Exception, SystemExit) as error:
        raise HandlerError(_import_failure(name, root, error)) from error


def missing_module(name: str, root: Path, setting: str = "handlers") -> HandlerError:
    """Return the error for a module that `setting` names and that does not exist."""
    package, dot, _ = name.rpartition(".")
    folder = root.joinpath(*package.split(".")) if package else root
    found = [path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()] if folder.is_dir() else []
    hint = did_you_mean(name, [f"{package}{dot}{stem}" for stem in found]) or f"; {_INIT}"
    return HandlerError(f"{setting}: there is no module {name!r} in {root} or among what is installed{hint}")


def _place(module: ModuleType) -> str:
    return module.__file__ or ", ".join(getattr(module, "__path__", []))


def _import_failure(name: str, root: Path, error: BaseException) -> str:
    """Name the line of the project that failed: the last frame in a file of the project, or that of a syntax error."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg} (while importing {name!r})"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    frames = [f for f in frames if f.filename != __file__]
    own = [f for f in frames if _belongs_to(root, Path(f.filename))] or frames
    place = f"{own[-1].filename}:{own[-1].lineno}" if own else name
    return f"{place}: {type(error).__name__}: {error} (while importing {name!r})"


def _belongs_to(root: Path, file: Path) -> bool:
    return file.is_relative_to(root) and not set(file.relative_to(root).parts) & set(_INSTALLED)
