"""The settings and the handlers of a test."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from supervisor.errors import UsageError
from supervisor.handling.discovery import declarations_in
from supervisor.handling.imports import make_importable
from supervisor.handling.loader import HandlerSpec, specs_of
from supervisor.settings.load import load
from supervisor.settings.model import Settings

#: A handler, or a module whose handlers are meant.
Handlers = Callable[..., Any] | ModuleType


def settings_of(config: Path | str | None, app: dict[str, Any] | None) -> Settings:
    """Return the settings of that config.toml without the environment, or the defaults. Raises ConfigError."""
    if config is None:
        settings = Settings()
    else:
        loaded = load(Path(config), environ={})
        make_importable(loaded.root)
        settings = loaded.settings
    return settings if app is None else settings.changed(app=app)


def specs_among(settings: Settings, handlers: Iterable[Handlers]) -> list[HandlerSpec]:
    """Return the handlers among functions and modules. Raises UsageError for a function that is not a handler."""
    functions = list(_functions(handlers))
    if not functions:
        raise UsageError("there is no @handler among what was given")
    # A process that was forked from a test would be a copy of pytest.
    return [replace(spec, options=replace(spec.options, run_in="thread")) for spec in specs_of(settings, functions)]


def _functions(handlers: Iterable[Handlers]) -> Iterator[Callable[..., Any]]:
    for one in handlers:
        if inspect.ismodule(one):
            yield from (function for function, _ in declarations_in(list(vars(one).values())))
        elif not list(declarations_in([one])):
            raise UsageError(
                f"{getattr(one, '__qualname__', one)!r} is not a handler: it needs @handler(stream, group=...)"
            )
        else:
            yield one
