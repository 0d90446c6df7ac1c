"""The project's own routers (`[api] routers`): imported, checked and mounted behind the service's routes."""

import inspect
import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, routing
from fastapi.utils import generate_unique_id
from starlette.routing import BaseRoute, Match

from supervisor.errors import HandlerError
from supervisor.handling.discovery import declarations_in
from supervisor.handling.imports import import_module_of, make_importable
from supervisor.handling.router_check import no_router, router_setting
from supervisor.settings.load import Loaded

from .checked_body import no_member_twice
from .schemas import problems

#: Newer versions of FastAPI keep included routers as a tree, older ones as a flat list.
_routes_of = getattr(routing, "iter_route_contexts", iter)
_PARAMETER = re.compile(r"\{[^}]*\}")


def mount(app: FastAPI, loaded: Loaded) -> None:
    """Add the routes of all configured routers to `app`. Raises HandlerError that names file and line."""
    own = list(app.routes)
    make_importable(loaded.root)
    setting = router_setting(loaded)
    for name in loaded.settings.api.routers:
        module_name, _, attribute = name.partition(":")
        module = import_module_of(module_name, loaded.root, setting)
        router = _router_in(module, attribute, setting)
        if module_name not in loaded.settings.handlers:
            _refuse_handlers(module)
        for route in _routes_of(router.routes):
            _refuse_collision(route, own, name)
        try:
            app.include_router(
                router,
                dependencies=[Depends(no_member_twice)],
                responses=problems("invalid", "redis-unavailable"),
                generate_unique_id_function=generate_unique_id,
            )
        except Exception as error:
            raise HandlerError(f"{setting}: {name}: {error}") from error


def _router_in(module: ModuleType, attribute: str, setting: str) -> APIRouter:
    candidate = getattr(module, attribute, None)
    if isinstance(candidate, APIRouter):
        return candidate
    routers = [name for name, value in vars(module).items() if isinstance(value, APIRouter)]
    if not hasattr(module, attribute):
        raise no_router(module.__file__, attribute, routers, setting)
    hint = f"; its routers: {', '.join(routers)}" if routers else ""
    kind = type(candidate).__name__
    raise HandlerError(f"{setting}: {attribute!r} in {module.__file__} is not an APIRouter but a {kind}{hint}")


def _refuse_handlers(module: ModuleType) -> None:
    """Raise HandlerError for a handler that no worker would run: workers skip the modules with routers."""
    for function, declaration in declarations_in(vars(module).values()):
        if getattr(function, "__module__", module.__name__) == module.__name__:
            raise HandlerError(
                f"{declaration.where}: api.routers names this module, so workers skip it and its handler never runs;"
                " move the handler to another module"
            )


def _refuse_collision(route: Any, own: Sequence[BaseRoute], name: str) -> None:
    """Raise HandlerError for a route with the address of one of the service's own routes, which come first."""
    path: str = route.path
    scope = {"type": "http", "method": "GET", "path": _PARAMETER.sub("1", path), "root_path": "", "headers": []}
    if all(other.matches(scope)[0] is Match.NONE for other in own):
        return
    code = getattr(inspect.unwrap(route.endpoint), "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}: " if code else ""
    raise HandlerError(
        f"{where}the path {path!r} belongs to the HTTP service; give the route another one (api.routers: {name})"
    )
