"""A pool of workers for Redis Streams: write typed handlers, run `supervisor start`.

The names below are the public ones. The distribution is called differently from the package, since
`supervisor` on the package index is supervisord; the two can't share an environment.
"""

from supervisor.context import context
from supervisor.handling.registry import handler
from supervisor.messages import BatchError, Message, Reject, Retry
from supervisor.version import __version__

__all__ = ["BatchError", "Message", "Reject", "Retry", "__version__", "context", "handler"]
