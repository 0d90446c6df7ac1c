"""Refuses query parameters that a route does not have: a misspelt one would count as left out.

Nor may one be given twice: all but the last would count as left out.
"""

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from supervisor.text import did_you_mean

from .problems import Problem

#: How many unknown parameters an answer names, and how many characters of each.
_NAMED_MAX = 10
_NAME_CHARS_MAX = 100


async def only_known(request: Request) -> None:
    """Check the query of a request, as a dependency of its route. Raises Problem (422)."""
    if request.scope["query_string"]:
        check_query(request, request.scope["route"])


def check_query(request: Request, route: APIRoute) -> None:
    """Raise Problem (422) for query parameters that the route's description does not list, or that are given twice."""
    described = (route.openapi_extra or {}).get("parameters", ())
    known = [*_declared(route.dependant), *(one["name"] for one in described if one["in"] == "query")]
    given = [name for name, _ in request.query_params.multi_items()]
    unknown = [name[:_NAME_CHARS_MAX] for name in dict.fromkeys(given) if name not in known][:_NAMED_MAX]
    errors = [
        {"parameter": name, "detail": f"unknown parameter {name!r}{did_you_mean(name, known)}"} for name in unknown
    ]
    allowed = f"known: {', '.join(known)}" if known else "this address takes none"
    hint = f" ({allowed})" if unknown else ""
    errors += [
        {"parameter": name, "detail": f"{name!r} may be given once only"} for name in known if given.count(name) > 1
    ]
    if errors:
        raise Problem("invalid", "; ".join(error["detail"] for error in errors) + hint, errors=errors)


def _declared(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _declared(inner)
