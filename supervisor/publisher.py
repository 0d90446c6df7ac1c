"""Publishes messages: everything that one turn of the event loop publishes goes out as one pipeline.

1. A publish whose answer was lost is repeated only when it carries a key, so nothing is stored twice.
2. Each publish is answered within its timeout, whatever Redis does; nothing is kept for later.
3. A publish never trims a stream: retention is the keeper's.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any, NamedTuple, Self

from redis.asyncio import Redis

from supervisor.broker.node_router import NodeRouter
from supervisor.broker.publish_pipeline import AT_ONCE
from supervisor.broker.scripts import PUBLISH_ONCE, Script
from supervisor.core.encode import fields_of
from supervisor.core.field_text import Value
from supervisor.errors import IdempotencyError, UsageError
from supervisor.keys import idempotency_key

#: How long a key is remembered.
KEY_TTL_S = 24 * 3600
KEY_BYTES_MAX = 255
#: Messages in one `publish_many`: about 70 ms of the server's time.
BATCH_MAX = 10_000
#: What a tracer adds to a message.
TRACE_FIELDS = frozenset({"traceparent", "tracestate", "baggage"})
_CONFLICT = 2


class Published(NamedTuple):
    """The result of a publish."""

    #: The entry's id.
    id: str
    #: It was stored before under the same key, with this id.
    replayed: bool = False


class PublishedBatch(NamedTuple):
    """The result of `publish_batch`."""

    ids: list[str]
    replayed: bool = False


class Sending:
    """What a tracer has made of the messages of a publish."""

    def __init__(self, messages: Sequence[Mapping[str, Value]]) -> None:
        #: What is stored.
        self.messages = messages
        #: The ids, once it is stored.
        self.ids: list[str] = []


#: Goes around a publish: called with the stream and the encoded messages.
Tracer = Callable[[str, Sequence[Mapping[str, Value]]], AbstractContextManager[Sending]]
_tracer: Tracer | None = None


def trace_publishes(tracer: Tracer | None) -> None:
    """Have `tracer` go around each publish of this process; None: nothing does, and nothing is paid for it."""
    global _tracer  # noqa: PLW0603 - of the process, as tracing is
    _tracer = tracer


def traced(stream: str, fields: Mapping[str, Value]) -> Mapping[str, Value]:
    """Return the fields of a message that another one publishes, with those that a tracer adds."""
    if _tracer is None:
        return fields
    with _tracer(stream, [fields]) as sending:
        return sending.messages[0]


class Publisher:
    """Publishes to the streams of one Redis. `async with Publisher(url) as publisher: await publisher.publish(...)`.

    All tasks of an event loop share one connection, in a cluster one to each node. In another event loop (a second
    `asyncio.run`, a loop in a thread) it connects anew. Without one, use `SyncPublisher`. Errors are
    PublishRefusedError (not stored), PublishUnknownError (the answer was lost) and EncodeError (the message can't be
    stored as fields).
    """

    def __init__(self, redis: str | Redis, *, timeout_s: float = 5.0, connect_timeout_s: float | None = None) -> None:
        """`redis`: a URL, or a redis-py asyncio client whose server and credentials are used. Connects later.

        `connect_timeout_s` is a shorter limit for connecting.
        """
        self._make: Callable[[], NodeRouter] = partial(
            NodeRouter, redis, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s
        )
        self._make()  # a wrong URL is an error here, not at the first message
        self._of_loops: dict[asyncio.AbstractEventLoop, tuple[NodeRouter, AsyncGenerator[None, None]]] = {}
        self._closed = False

    async def publish(self, stream: str, message: Any, *, key: str | None = None) -> Published:
        """Store `message` (a mapping, pydantic model or dataclass) and return its id.

        Strings are stored as they are, everything else as JSON text. With `key`, the same message is
        stored once in 24 h, however often it is published. Raises the class's errors, and
        IdempotencyError when the key stands for another message.
        """
        fields = fields_of(message)
        self._check(stream)
        if _tracer is not None:
            with _tracer(stream, [fields]) as sending:
                sending.ids, replayed = await self._store(stream, sending.messages, key)
                return Published(sending.ids[0], replayed)
        if key is not None:
            ids, replayed = await self._once(stream, [fields], key)
            return Published(ids[0], replayed)
        flat = [text for pair in fields.items() for text in pair]
        entry: bytes = await self._router.send(stream, lambda node: node.command("XADD", stream, "*", *flat))
        return Published(entry.decode())

    async def publish_many(self, stream: str, messages: Iterable[Any], *, key: str | None = None) -> list[str]:
        """Store all of the messages in one transaction, or none; return their ids, in order.

        At most BATCH_MAX at once, else UsageError. Raises as `publish` does; nothing is sent when one
        of them can't be encoded.
        """
        return (await self.publish_batch(stream, [fields_of(message) for message in messages], key=key)).ids

    async def publish_batch(
        self, stream: str, messages: Sequence[Mapping[str, Value]], *, key: str | None = None
    ) -> PublishedBatch:
        """Store messages that are encoded already, like `publish_many`; report whether the key was used before."""
        self._check(stream)
        if len(messages) > BATCH_MAX:
            raise UsageError(f"{len(messages)} messages at once: at most {BATCH_MAX} are allowed")
        if not messages:
            return PublishedBatch([])
        if _tracer is None:
            return await self._store(stream, messages, key)
        with _tracer(stream, messages) as sending:
            sending.ids, replayed = await self._store(stream, sending.messages, key)
            return PublishedBatch(sending.ids, replayed)

    async def _store(self, stream: str, messages: Sequence[Mapping[str, Value]], key: str | None) -> PublishedBatch:
        if key is not None:
            return PublishedBatch(*await self._once(stream, messages, key))
        commands = [("XADD", stream, "*", *(text for pair in fields.items() for text in pair)) for fields in messages]
        entries: list[bytes] = await self._router.send(stream, lambda node: node.transaction(commands))
        return PublishedBatch([entry.decode() for entry in entries])

    async def evaluate(
        self, script: str, keys: Sequence[str], *arguments: str | bytes | int, repeatable: bool = False
    ) -> Any:
        """Run a Lua script in the same pipeline as the publishes around it, and return its raw reply.

        With it a record and its message are stored together or not at all. In Redis Cluster all `keys` must be in
        one hash slot. `repeatable`: the script may be sent again when its answer was lost. Raises as `publish` does.
        """
        own = _script(script)
        return await self._router.send(
            keys[0] if keys else "", lambda node: node.script(own, keys, *arguments, repeatable=repeatable)
        )

    async def aclose(self) -> None:
        """Wait for the publishes under way, then disconnect."""
        self._closed = True
        own = asyncio.get_running_loop()
        for loop, (_, closing) in list(self._of_loops.items()):
            if loop is own:
                await closing.aclose()
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(closing.aclose(), loop)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def _router(self) -> NodeRouter:
        loop = asyncio.get_running_loop()
        found = self._of_loops.get(loop)
        if found is None:
            for other in [other for other in self._of_loops if other.is_closed()]:
                del self._of_loops[other]
            router = self._make()
            found = self._of_loops[loop] = router, _closed_with_its_loop(router)
            with contextlib.suppress(StopIteration):  # it runs up to its `yield`
                anext(found[1]).__await__().send(None)
        return found[0]

    async def _once(self, stream: str, messages: Sequence[Mapping[str, Value]], key: str) -> tuple[list[str], bool]:
        if not key or len(key.encode(errors="surrogatepass")) > KEY_BYTES_MAX:
            raise UsageError(f"an idempotency key has 1 to {KEY_BYTES_MAX} bytes, not {len(key)}")
        values: list[Value | int] = []
        for fields in messages:
            values.append(2 * len(fields))
            values += [text for pair in fields.items() for text in pair]
        keys, arguments = [idempotency_key(stream, key), stream], (await _fingerprint(messages), KEY_TTL_S, *values)
        status, *ids = await self._router.send(
            stream, lambda node: node.script(PUBLISH_ONCE, keys, *arguments, repeatable=True)
        )
        if status == _CONFLICT:
            raise IdempotencyError(f"the key {key!r} was used for another message on {stream!r}", "CONFLICT")
        return [entry.decode() for entry in ids], status == 1

    def _check(self, stream: str) -> None:
        if self._closed:
            raise UsageError("the publisher is closed")
        try:
            stream.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"stream {stream!r}: not Unicode: {error.reason}") from None
        if not stream:
            raise UsageError("a stream's name must not be empty")


async def _closed_with_its_loop(router: NodeRouter) -> AsyncGenerator[None, None]:
    """Close the router when an event loop ends that nobody has closed the publisher in: it ends its generators."""
    try:
        yield
    finally:
        await router.close()


@lru_cache(maxsize=64)
def _script(text: str) -> Script:
    """Return the script of a text; cached, so that its digest is computed once."""
    return Script(text)


async def _fingerprint(messages: Sequence[Mapping[str, Value]]) -> str:
    """Return a digest that does not depend on the order of fields, nor on the trace that a message belongs to."""
    digest = hashlib.blake2b(digest_size=16)
    for number, fields in enumerate(messages, 1):
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
        pairs = sorted((name, value) for name, value in fields.items() if name not in TRACE_FIELDS)
        for text in (str(len(pairs)), *(part for pair in pairs for part in pair)):
            data = text.encode() if isinstance(text, str) else text
            digest.update(len(data).to_bytes(4, "big") + data)
    return digest.hexdigest()
