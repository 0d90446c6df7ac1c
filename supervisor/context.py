"""The context of a running handler: `supervisor.context()`.

It gives a handler Redis, the project's settings and a folder for files, in a worker as in a FastAPI app's lifespan.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from supervisor.errors import UsageError

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from supervisor.messages import Message
    from supervisor.publisher import Publisher


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
    _made: dict[tuple[str, Any], Any] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def message(self) -> Message:
        """The message that is handled, also in tasks and threads that its handler has started.

        Raises UsageError for a batch and where no message is handled.
        """
        runner = in_hand.get()
        messages = runner.messages if runner else ()
        if len(messages) != 1:
            raise UsageError(
                "context().message: a batch has several messages; take them as a second parameter: list[Message]"
                if messages
                else "context().message: no message is handled here"
            )
        return messages[0]

    @property
    def redis(self) -> Redis:
        """A client of the worker's Redis, made at its first use: bytes in and out, no retries.

        In a coroutine it is `redis.asyncio.Redis`. A plain function, which runs in a thread, gets the blocking
        `redis.Redis`, whose methods are the same without `await`.
        """
        # Not at the top: `import supervisor`, which every command does, would take 100 ms longer.
        from supervisor.broker.blocking import blocking_client
        from supervisor.broker.connect import client, running_loop

        loop = running_loop()
        redis: Redis = self._once(
            ("redis", loop), lambda: (blocking_client if loop is None else client)(self.redis_url)
        )
        return redis

    @property
    def publisher(self) -> Publisher:
        """A publisher to the worker's Redis, made at its first use.

        In a coroutine it is a `Publisher`. A plain function gets a `SyncPublisher`, whose methods are the same
        without `await`.
        """
        from supervisor.broker.connect import running_loop
        from supervisor.publisher import Publisher
        from supervisor.sync_publisher import SyncPublisher

        kind: Any = SyncPublisher if running_loop() is None else Publisher
        publisher: Publisher = self._once(("publisher", kind), lambda: kind(self.redis_url))
        return publisher

    async def aclose(self) -> None:
        """Close what was made, all of it also when one fails; then raises that error."""
        import asyncio  # not at the top: no command needs it
        from contextlib import AsyncExitStack

        global _entered_last  # noqa: PLW0603
        if _entered_last is self:
            _entered_last = None

        with self._lock:
            made, self._made = self._made, {}
        own = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            for (_, loop), one in made.items():
                if loop is None or not hasattr(one, "aclose"):
                    stack.push_async_callback(asyncio.to_thread, one.close)
                elif loop is own or not isinstance(loop, asyncio.AbstractEventLoop):
                    stack.push_async_callback(one.aclose)

    def _once(self, key: tuple[str, Any], make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            return self._made[key]


class InHand(Protocol):
    """What has messages in hand: a runner, or a call in a thread."""

    @property
    def messages(self) -> Sequence[Message]:
        """The message, or those of the batch."""


class Held(NamedTuple):
    """Messages that stay in hand, whatever their runner does next."""

    messages: Sequence[Message]


#: Whose messages are handled in this task or thread.
in_hand: ContextVar[InHand | None] = ContextVar("supervisor_in_hand", default=None)
_current: ContextVar[Context] = ContextVar("supervisor_context")
#: For threads that a handler starts without its context variables (`Thread`, `run_in_executor`).
_entered_last: Context | None = None


def context() -> Context:
    """Return the context of the running handler, also in threads that it has started. Raises UsageError elsewhere."""
    current = _current.get(None)
    if current is None and threading.current_thread() is not threading.main_thread():
        current = _entered_last
    if current is None:
        raise UsageError("supervisor.context() was called outside of a running handler")
    return current


def enter(entered: Context) -> None:
    """Have `context()` return this one in the current task, in those it starts, and in threads until it is closed."""
    global _entered_last  # noqa: PLW0603 - of the process: a bare thread knows nothing else
    _current.set(entered)
    _entered_last = entered
