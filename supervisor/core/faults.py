"""Which refusals of Redis pass by themselves. Pure.

A fault of Redis never ends a worker. A server that loads, fails over or is busy refuses everything for a
while, and all of it is sent again; what it refuses otherwise (a key of another type, no permission, no
memory) is that command's own trouble and must not hold up the others.
"""

from __future__ import annotations

from redis.exceptions import AskError, ClusterDownError, MasterDownError, ReadOnlyError, ResponseError, TryAgainError

#: AskError is MOVED too: the next connection is to the right node.
_PASSING = (AskError, ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
#: redis-py cuts off the codes that it has a class for; these it leaves in the text.
_PASSING_WORDS = frozenset({"BUSY", "LOADING", "MISCONF", "NOREPLICAS", "UNBLOCKED"})


def passes(error: ResponseError) -> bool:
    """Whether the server refuses this only for now, and everything else too."""
    return isinstance(error, _PASSING) or str(error).partition(" ")[0] in _PASSING_WORDS
