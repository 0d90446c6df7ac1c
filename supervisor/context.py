"""The context of a running handler: `supervisor.context()`.

It gives a handler Redis, the project's settings and a folder for files, in a worker as in a FastAPI app's lifespan.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.errors import UsageError

if TYPE_CHECKING:
    from redis.asyncio import Redis


@dataclass(slots=True)
class Context:
    """The context of the handlers of one worker."""

    #: The `[app]` table of config.toml.
    app: Mapping[str, Any]
    #: The pool's folder for files.
    state_dir: Path
    #: The consumer's name, `<host>:<slot>`.
    worker: str
    redis_url: str
    #: What the project's `@worker_lifespan` has yielded.
    state: Any = field(default_factory=dict)
    _redis: Redis | None = field(default=None, repr=False)

    @property
    def redis(self) -> Redis:
        """A client of the worker's Redis, made at its first use: bytes in and out, no retries."""
        if self._redis is None:
            # Not at the top: `import supervisor`, which every command does, would take 100 ms longer.
            from supervisor.broker.connect import client

            self._redis = client(self.redis_url)
        return self._redis

    async def aclose(self) -> None:
        """Close the client, if there is one."""
        if self._redis is not None:
            await self._redis.aclose()
            self._redis = None


_current: ContextVar[Context] = ContextVar("supervisor_context")


def context() -> Context:
    """Return the context of the running handler. Raises UsageError outside of one."""
    try:
        return _current.get()
    except LookupError:
        raise UsageError("supervisor.context() was called outside of a running handler") from None


def enter(entered: Context) -> None:
    """Have `context()` return this one in the current task and in those it starts."""
    _current.set(entered)
