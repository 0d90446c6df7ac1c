"""Refuses query parameters that a route does not have: a misspelt one would count as left out."""

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from supervisor.text import did_you_mean

from .problems import Problem

#: An answer names the first ones.
_NAMED_MAX = 10


async def only_known(request: Request) -> None:
    """Check the query of a request, as a dependency of its route. Raises Problem (422)."""
    if request.scope["query_string"]:
        check_query(request, request.scope["route"])


def check_query(request: Request, route: APIRoute) -> None:
    """Raise Problem (422) for query parameters that the route's description does not list."""
    described = (route.openapi_extra or {}).get("parameters", ())
    known = [*_declared(route.dependant), *(one["name"] for one in described if one["in"] == "query")]
    unknown = [name for name in request.query_params if name not in known][:_NAMED_MAX]
    if not unknown:
        return
    errors = [
        {"parameter": name, "detail": f"unknown parameter {name!r}{did_you_mean(name, known)}"} for name in unknown
    ]
    allowed = f"known: {', '.join(known)}" if known else "this address takes none"
    raise Problem("invalid", f"{'; '.join(error['detail'] for error in errors)} ({allowed})", errors=errors)


def _declared(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _declared(inner)
