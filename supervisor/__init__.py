"""A pool of workers for Redis Streams: write typed handlers, run `supervisor start`.

The names below are the public ones. The distribution is called differently from the package, since
`supervisor` on the package index is supervisord; the two can't share an environment.
"""

from typing import TYPE_CHECKING, Any

from supervisor.context import context
from supervisor.messages import BatchError, Message, Reject, Retry
from supervisor.publisher import Publisher
from supervisor.version import __version__

if TYPE_CHECKING:
    from supervisor.handling.registry import handler

__all__ = ["BatchError", "Message", "Publisher", "Reject", "Retry", "__version__", "context", "handler"]


def __getattr__(name: str) -> Any:
    """Import `handler` when it is first asked for: it brings pydantic, which most commands never need."""
    if name != "handler":
        raise AttributeError(f"module 'supervisor' has no attribute {name!r}")
    from supervisor.handling.registry import handler

    globals()["handler"] = handler
    return handler
