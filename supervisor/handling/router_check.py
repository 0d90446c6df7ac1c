"""Checks the routers of `[api] routers` without importing them: the arbiter must not import FastAPI.

It finds modules and names that are missing, and syntax errors, before a pool starts. The process of the HTTP
service imports the routers and finds the rest.
"""

import symtable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from supervisor.errors import HandlerError
from supervisor.handling.imports import make_importable, missing_module
from supervisor.settings.load import Loaded
from supervisor.text import did_you_mean


def check_routers(loaded: Loaded) -> None:
    """Raise HandlerError for a router that can't be there."""
    make_importable(loaded.root)
    setting = router_setting(loaded)
    for name in loaded.settings.api.routers:
        module, _, attribute = name.partition(":")
        file = _file_of(module, loaded.root)
        if file is not None:
            _check_name(file, attribute, setting)
        else:
            _check_installed(module, loaded.root, setting)


def router_setting(loaded: Loaded) -> str:
    """Return where the routers are configured, for error texts."""
    return f"{loaded.origins.get('api.routers', 'default')}: api.routers"


def no_router(file: object, attribute: str, routers: list[str], setting: str) -> HandlerError:
    """Return the error for a module without that router; `routers` are the names that could be meant."""
    hint = did_you_mean(attribute, routers)
    return HandlerError(f"{setting}: there is no {attribute!r} in {file}{hint}")


def _file_of(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split("."))
    return next((file for file in (base / "__init__.py", base.with_suffix(".py")) if file.is_file()), None)


def _check_installed(module: str, root: Path, setting: str) -> None:
    """Raise HandlerError when a module without a file in the project can't be an installed one either."""
    package = module.partition(".")[0]
    if (root / package).is_dir() or (root / f"{package}.py").is_file():
        raise missing_module(module, root, setting)
    if find_spec(package) is None:
        raise missing_module(package, root, setting)


def _check_name(file: Path, attribute: str, setting: str) -> None:
    text: Any = file.read_bytes()  # it may name an encoding of its own
    try:
        symbols = symtable.symtable(text, str(file), "exec").get_symbols()
    except SyntaxError as error:
        raise HandlerError(f"{file}:{error.lineno}: {error.msg} ({setting})") from None
    except ValueError as error:  # a NUL byte, before Python 3.11.4
        raise HandlerError(f"{file}: {error} ({setting})") from None
    assigned = [symbol.get_name() for symbol in symbols if symbol.is_assigned()]
    names = {*assigned, *(symbol.get_name() for symbol in symbols if symbol.is_imported())}
    if attribute not in names and "__getattr__" not in names and b"import *" not in text:
        raise no_router(file, attribute, assigned, setting)
