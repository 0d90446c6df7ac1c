"""A pool of workers for Redis Streams: write typed handlers, run `supervisor start`.

The names below are public. The distribution has another name than the package, since `supervisor` on the package
index is supervisord; the two can't share an environment.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from supervisor._version import __version__
from supervisor.context import context
from supervisor.errors import (
    ConfigError,
    EncodeError,
    HandlerError,
    HandlerProcessError,
    HandlerTimeoutError,
    IdempotencyError,
    NotConfirmedError,
    PublishError,
    PublishRefusedError,
    PublishUnknownError,
    RedisUnreachableError,
    SupervisorError,
    UsageError,
)

if TYPE_CHECKING:
    from supervisor.core.emit import Emit
    from supervisor.handling.middleware import Next, NextBatch
    from supervisor.handling.registry import handler
    from supervisor.handling.worker_lifespan import worker_lifespan
    from supervisor.messages import BatchError, DecodeError, Message, Reject, Retry
    from supervisor.publisher import Published, Publisher
    from supervisor.sync_publisher import SyncPublisher

__all__ = [
    "BatchError",
    "ConfigError",
    "DecodeError",
    "Emit",
    "EncodeError",
    "HandlerError",
    "HandlerProcessError",
    "HandlerTimeoutError",
    "IdempotencyError",
    "Message",
    "Next",
    "NextBatch",
    "NotConfirmedError",
    "PublishError",
    "PublishRefusedError",
    "PublishUnknownError",
    "Published",
    "Publisher",
    "RedisUnreachableError",
    "Reject",
    "Retry",
    "SupervisorError",
    "SyncPublisher",
    "UsageError",
    "__version__",
    "context",
    "handler",
    "worker_lifespan",
]

#: Imported at their first use: `supervisor --help` needs neither pydantic nor redis-py.
_LAZY = {
    **dict.fromkeys(("BatchError", "DecodeError", "Message", "Reject", "Retry"), "supervisor.messages"),
    **dict.fromkeys(("Next", "NextBatch"), "supervisor.handling.middleware"),
    "Emit": "supervisor.core.emit",
    "handler": "supervisor.handling.registry",
    "worker_lifespan": "supervisor.handling.worker_lifespan",
    "Published": "supervisor.publisher",
    "Publisher": "supervisor.publisher",
    "SyncPublisher": "supervisor.sync_publisher",
}


def __dir__() -> list[str]:
    """Return all names, also those that are imported later."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'supervisor' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value
