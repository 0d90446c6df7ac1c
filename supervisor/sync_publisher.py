"""Publishes from threads and scripts, which have no event loop."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

from redis.asyncio import Redis

from supervisor.core.field_text import Value
from supervisor.errors import UsageError
from supervisor.publisher import Published, PublishedBatch, Publisher

T = TypeVar("T")


class SyncPublisher:
    """Publishes to the streams of one Redis: `with SyncPublisher(url) as publisher: publisher.publish(...)`.

    Any number of threads may share one. It is a `Publisher` in a thread of its own, so what threads publish at the
    same time goes out together. A process that was forked gets a thread and connections of its own.
    """

    def __init__(self, redis: str | Redis, *, timeout_s: float = 5.0, connect_timeout_s: float | None = None) -> None:
        """Publish to `redis`: a URL, or an asyncio client whose server and credentials are used. Connects later."""
        self._make: Callable[[], Publisher] = lambda: Publisher(
            redis, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s
        )
        self._publisher = self._make()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._closed = False

    def publish(
        self,
        stream: str,
        message: Any,
        *,
        key: str | None = None,
        key_ttl_s: float | None = None,
        after_s: float | None = None,
        at: datetime | None = None,
    ) -> Published:
        """Store `message` and return its id, as `Publisher.publish` does. Raises as it does."""
        options: dict[str, Any] = {"key": key, "key_ttl_s": key_ttl_s, "after_s": after_s, "at": at}
        return self._run(lambda publisher: publisher.publish(stream, message, **options))

    def publish_many(self, stream: str, messages: Iterable[Any], **options: Any) -> list[str]:
        """Store all of the messages or none; return their ids, in order. Raises as `Publisher.publish_many` does."""
        return self._run(lambda publisher: publisher.publish_many(stream, messages, **options))

    def publish_batch(self, stream: str, messages: Sequence[Mapping[str, Value]], **options: Any) -> PublishedBatch:
        """Store messages that are encoded already. Raises as `Publisher.publish_batch` does."""
        return self._run(lambda publisher: publisher.publish_batch(stream, messages, **options))

    def evaluate(self, script: str, keys: Sequence[str], *arguments: str | int, repeatable: bool = False) -> Any:
        """Run a Lua script and return its raw reply. Raises as `Publisher.evaluate` does."""
        return self._run(lambda publisher: publisher.evaluate(script, keys, *arguments, repeatable=repeatable))

    def close(self) -> None:
        """Wait for the publishes under way, disconnect and end the thread."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None or self._pid != os.getpid():
            return
        asyncio.run_coroutine_threadsafe(self._publisher.aclose(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, publish: Callable[[Publisher], Awaitable[T]]) -> T:
        if self._pid != os.getpid():  # threads do not survive a fork, and connections must not be shared
            self._lock, self._pid = threading.Lock(), os.getpid()
            self._loop, self._publisher = None, self._make()
        with self._lock:  # until it is handed over: in a loop that `close` has ended, it would never be answered
            loop, publisher = self._started(), self._publisher

            async def call() -> T:
                return await publish(publisher)

            future = asyncio.run_coroutine_threadsafe(call(), loop)
        try:
            return future.result()
        finally:
            future.cancel()  # when Ctrl-C or a signal's handler has raised here

    def _started(self) -> asyncio.AbstractEventLoop:
        """Return the loop, in a thread that runs; call it with the lock. Raises UsageError when it is closed."""
        if self._closed:
            raise UsageError("the publisher is closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(self._loop,), name="publisher", daemon=True)
            self._thread.start()
        return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    # What watches the sentinels outlives the connections by some seconds.
    if left := asyncio.all_tasks(loop):
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
