"""Counts the requests of this process: by route and status, and the refusals by kind of problem."""

from collections import Counter

from starlette.types import Scope

#: Stands for the paths that match no route: clients choose them, so their number has no bound.
NO_ROUTE = "none"
#: Other methods are counted together: clients may send any word.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class HttpFigures:
    """The counters of one process."""

    def __init__(self, process: str = "") -> None:
        """`process` tells apart the processes of one address, each of which answers with its own counts."""
        self.labels = {"process": process} if process else {}
        #: (method, route, status) -> answers.
        self.requests: Counter[tuple[str, str, int]] = Counter()
        #: Kind of problem -> answers.
        self.refusals: Counter[str] = Counter()

    def answered(self, scope: Scope, status: int) -> None:
        """Count the answer to the request of `scope`, after its route was found. The method may be unknown."""
        method = scope["method"] if scope.get("method") in _METHODS else "other"
        route = scope.get("route")
        self.requests[method, getattr(route, "path_format", NO_ROUTE), status] += 1

    def refused(self, kind: str) -> None:
        """Count an answer with a problem of this kind."""
        self.refusals[kind] += 1
