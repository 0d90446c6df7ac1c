"""Publishes messages: everything that one iteration of the event loop publishes goes out as one pipeline.

1. A publish whose answer was lost is repeated only when it carries a key, so nothing is stored twice.
2. Each publish is answered within its timeout, whatever Redis does; nothing is kept for later.
3. A publish never trims a stream: retention is the keeper's.
4. What is published later waits in a sorted set beside the stream (`core/later.py`). Any pool's keeper moves it to the
   stream when it is due.
"""

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import lru_cache, partial
from itertools import chain
from typing import Any, NamedTuple, Self

from redis.asyncio import Redis

from supervisor.broker.command_pieces import AT_ONCE
from supervisor.broker.node_router import NodeRouter
from supervisor.broker.scripts import PUBLISH_LATER, PUBLISH_ONCE, Script
from supervisor.core.confirmation import Confirmation
from supervisor.core.encode import fields_of
from supervisor.core.field_text import Value
from supervisor.core.later import When, moment, to_member, when_of
from supervisor.errors import IdempotencyError, NotConfirmedError, PublishRefusedError, PublishUnknownError, UsageError
from supervisor.keys import LATER_STREAMS_KEY, idempotency_key, later_key, origins_key
from supervisor.values import SECONDS_MAX

#: How long a key is remembered unless `key_ttl_s` says otherwise.
KEY_TTL_S = 24 * 3600
KEY_BYTES_MAX = 255
#: Messages in one `publish_many`: about 70 ms of the server's time.
BATCH_MAX = 10_000
#: What a tracer adds to a message.
TRACE_FIELDS = frozenset({"traceparent", "tracestate", "baggage"})
_CONFLICT = 2
#: How often a publisher notes again that a stream has messages for later.
_NOTE_S = 60.0
_NOTED_MAX = 10_000
#: Makes the script of a text; the digest of each is computed once.
_script = lru_cache(maxsize=64)(Script)


class Published(NamedTuple):
    """The result of a publish."""

    #: The entry's id; the id to cancel it by when it is published later.
    id: str
    #: It was stored before under the same key, with this id.
    replayed: bool = False
    #: When it will be published; None: it is in the stream.
    due: datetime | None = None


class PublishedBatch(NamedTuple):
    """The result of `publish_batch`."""

    ids: list[str]
    replayed: bool = False
    due: datetime | None = None


class _Options(NamedTuple):
    """How messages are stored."""

    key: str | None
    key_ttl_s: float
    when: When | None
    confirmation: Confirmation | None = None
    #: The stream, the group and the ids of the messages whose handler has returned it as `Emit`.
    emitted_by: tuple[str, str, str] | None = None


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
    `asyncio.run`, a loop in a thread) it connects again. Without one, use `SyncPublisher`. Errors are
    PublishRefusedError (not stored), PublishUnknownError (the answer was lost) and EncodeError (the message can't be
    stored as fields).
    """

    def __init__(self, redis: str | Redis, *, timeout_s: float = 5.0, connect_timeout_s: float | None = None) -> None:
        """Publish to `redis`: a URL, or an asyncio client whose server and credentials are used. Connects later.

        `connect_timeout_s` is a shorter limit for connecting.
        """
        self._make: Callable[[], NodeRouter] = partial(
            NodeRouter, redis, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s
        )
        self._make()  # a wrong URL is an error here, not at the first message
        self._of_loops: dict[asyncio.AbstractEventLoop, tuple[NodeRouter, AsyncGenerator[None, None]]] = {}
        self._closed = False
        #: Stream -> when it was noted that it has messages for later, by `time.monotonic`.
        self._noted_s: dict[str, float] = {}

    async def publish(
        self,
        stream: str,
        message: Any,
        *,
        key: str | None = None,
        key_ttl_s: float | None = None,
        after_s: float | None = None,
        at: datetime | None = None,
    ) -> Published:
        """Store `message` (a mapping, pydantic model or dataclass) and return its id.

        Strings are stored as they are, everything else as JSON text. With `key`, the same message is
        stored once in `key_ttl_s` (24 h), however often it is published. With `after_s` or `at` it is published
        then: a pool's keeper moves it to the stream. Raises the class's errors, and IdempotencyError when the key
        stands for another message.
        """
        fields = fields_of(message)
        if _tracer is None and key is None and key_ttl_s is None and after_s is None and at is None:
            self._check(stream)
            return await self._store_one(stream, fields)
        ids, replayed, due = await self.publish_batch(
            stream, [fields], key=key, key_ttl_s=key_ttl_s, after_s=after_s, at=at
        )
        return Published(ids[0], replayed, due)

    async def publish_many(self, stream: str, messages: Iterable[Any], **options: Any) -> list[str]:
        """Store all of the messages in one transaction, or none; return their ids, in order.

        At most BATCH_MAX at once, else UsageError. It has the options of `publish` and raises as it does; nothing is
        sent when one of them can't be encoded.
        """
        return (await self.publish_batch(stream, [fields_of(message) for message in messages], **options)).ids

    async def publish_batch(  # noqa: PLR0913 - how a message may be stored
        self,
        stream: str,
        messages: Sequence[Mapping[str, Value]],
        *,
        key: str | None = None,
        key_ttl_s: float | None = None,
        after_s: float | None = None,
        at: datetime | None = None,
        confirmation: Confirmation | None = None,
        emitted_by: tuple[str, str, str] | None = None,
    ) -> PublishedBatch:
        """Store messages that are encoded already, like `publish_many`; report whether the key was used before.

        With `confirmation`, raises NotConfirmedError when it does not come: the messages are stored then.
        """
        self._check(stream)
        options = _Options(key, _key_ttl_s(key, key_ttl_s), when_of(after_s, at), confirmation, emitted_by)
        if confirmation and options.when:
            raise UsageError("a message for later can't be confirmed")
        if len(messages) > BATCH_MAX:
            raise UsageError(f"{len(messages)} messages at once: at most {BATCH_MAX} are allowed")
        if not messages or _tracer is None:
            return await self._store(stream, messages, options) if messages else PublishedBatch([])
        with _tracer(stream, messages) as sending:
            stored = await self._store(stream, sending.messages, options)
            sending.ids = stored.ids
            return stored

    async def _store_one(self, stream: str, fields: Mapping[str, Value]) -> Published:
        flat = tuple(chain.from_iterable(fields.items()))
        entry: bytes = await self._router.send(stream, lambda node: node.command("XADD", stream, "*", *flat))
        return Published(entry.decode())

    async def _store(self, stream: str, messages: Sequence[Mapping[str, Value]], options: _Options) -> PublishedBatch:
        if options.when is not None:
            return await self._later(stream, messages, options, options.when)
        if options.key is not None:
            return await self._once(stream, messages, options.key, options)
        confirmation = options.confirmation
        wait = confirmation.command if confirmation else ()
        reply = await self._router.send(stream, lambda node: node.transaction(_additions(stream, messages), wait=wait))
        ids = [entry.decode() for entry in (reply[0] if confirmation else reply)]
        if confirmation:
            _check_confirmed(confirmation, reply[1], ids)
        return PublishedBatch(ids)

    async def evaluate(
        self,
        script: str,
        keys: Sequence[str],
        *arguments: str | bytes | int,
        repeatable: bool = False,
        published: Callable[[Any], Published] | None = None,
    ) -> Any:
        """Run a Lua script in the same pipeline as the publishes around it, and return its raw reply.

        With it a record and its message are stored together or not at all. In Redis Cluster all `keys` must be in
        one hash slot. `repeatable`: the script may be sent again when its answer was lost. `published`: the script
        publishes one message to the stream `keys[0]`, and this function reads from the reply what became of it; the
        HTTP service counts it in its metrics then. Raises as `publish` does, and what `published` raises.
        """
        self._check_open()
        own = _script(script)
        reply = await self._router.send(
            keys[0] if keys else "", lambda node: node.script(own, keys, *arguments, repeatable=repeatable)
        )
        if published is not None:
            published(reply)
        return reply

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
        entry = self._of_loops.get(loop)
        if entry is None:
            for other in list(self._of_loops):  # threads with loops of their own change it meanwhile
                if other.is_closed():
                    self._of_loops.pop(other, None)
            router = self._make()
            entry = self._of_loops[loop] = router, _closed_with_its_loop(router)
            with contextlib.suppress(StopIteration):  # it runs up to its `yield`
                anext(entry[1]).__await__().send(None)
        return entry[0]

    async def _once(
        self, stream: str, messages: Sequence[Mapping[str, Value]], key: str, options: _Options
    ) -> PublishedBatch:
        values: list[Value | int] = []
        for fields in messages:
            values.append(2 * len(fields))
            values += chain.from_iterable(fields.items())
        keys = [idempotency_key(stream, key), stream]
        if options.emitted_by is not None:
            keys.append(origins_key(stream))
            values[:0] = options.emitted_by
        arguments = (await _fingerprint(messages), int(options.key_ttl_s * 1000), *values)
        confirmation = options.confirmation
        wait = confirmation.command if confirmation else ()
        reply = await self._router.send(
            stream, lambda node: node.script(PUBLISH_ONCE, keys, *arguments, repeatable=True, wait=wait)
        )
        status, *entries = reply[0] if confirmation else reply
        _refuse_conflict(status, stream, key)
        ids = [entry.decode() for entry in entries]
        if confirmation:
            _check_confirmed(confirmation, reply[1], ids)
        return PublishedBatch(ids, status == 1)

    async def _later(
        self, stream: str, messages: Sequence[Mapping[str, Value]], options: _Options, when: When
    ) -> PublishedBatch:
        began_s = asyncio.get_running_loop().time()
        await self._note_later(stream)
        key, keys = options.key, [later_key(stream)]
        if key is not None:
            keys.append(idempotency_key(stream, key))
        arguments: list[str | int] = [when.ms, "after" if when.is_delay else "at"]
        # A key stands for a message that is published later or for one that is not.
        fingerprint = "" if key is None else f"later:{await _fingerprint(messages)}"
        arguments += [fingerprint, int(options.key_ttl_s * 1000)]
        for number, fields in enumerate(messages, 1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
            message_id = os.urandom(12).hex()
            arguments += [message_id, to_member(message_id, fields)]
        status, *rest = await self._router.send(
            stream,
            lambda node: node.script(PUBLISH_LATER, keys, *arguments, repeatable=key is not None),
            began_s=began_s,
        )
        _refuse_conflict(status, stream, key)
        due, *ids = rest
        return PublishedBatch([one.decode() for one in ids], status == 1, moment(int(due)))

    async def _note_later(self, stream: str) -> None:
        """Note that the stream has messages for later, before it has them: it may have no handler in any pool."""
        now_s = time.monotonic()
        if now_s - self._noted_s.get(stream, -_NOTE_S) < _NOTE_S:
            return
        command = ("HSET", LATER_STREAMS_KEY, stream, int(time.time() * 1000))
        try:
            await self._router.send(LATER_STREAMS_KEY, lambda node: node.command(*command))
        except PublishUnknownError as error:  # nothing of the message was sent
            raise PublishRefusedError(
                f"Redis can't be reached: no answer in time for stream {stream!r}", error.code
            ) from error
        if len(self._noted_s) >= _NOTED_MAX:
            self._noted_s.clear()
        self._noted_s[stream] = now_s

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("the publisher is closed")

    def _check(self, stream: str) -> None:
        self._check_open()
        try:
            stream.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"stream {stream!r}: not Unicode: {error.reason}") from None
        if not stream:
            raise UsageError("a stream's name must not be empty")


async def _closed_with_its_loop(router: NodeRouter) -> AsyncGenerator[None, None]:
    """Close the router when its event loop ends and the publisher is still open: a loop ends its generators."""
    try:
        yield
    finally:
        await router.close()


def _additions(stream: str, messages: Iterable[Mapping[str, Value]]) -> Iterator[tuple[Value, ...]]:
    return (("XADD", stream, "*", *chain.from_iterable(fields.items())) for fields in messages)


def _check_confirmed(confirmation: Confirmation, reply: Any, ids: list[str]) -> None:
    if missing := confirmation.missing(reply):
        raise NotConfirmedError(f"stored under {ids[0]}, but {missing}", ids)


def _key_ttl_s(key: str | None, ttl_s: float | None) -> float:
    """Return how long the key is remembered. Raises UsageError for a key or a time that is not allowed."""
    if key is not None:
        if not isinstance(key, str):
            raise UsageError(f"key: {key!r} must be text")
        try:
            size = len(key.encode())
        except UnicodeEncodeError as error:
            raise UsageError(f"key {key!r}: not Unicode: {error.reason}") from None
        if not 1 <= size <= KEY_BYTES_MAX:
            raise UsageError(f"an idempotency key has 1 to {KEY_BYTES_MAX} bytes, not {size}")
    if ttl_s is None:
        return KEY_TTL_S
    if key is None:
        raise UsageError("key_ttl_s needs a key")
    if isinstance(ttl_s, bool) or not 1 <= ttl_s * 1000 <= SECONDS_MAX * 1000:
        raise UsageError(f"key_ttl_s: {ttl_s!r} must be more than 0 and at most {SECONDS_MAX:,} seconds")
    return ttl_s


def _refuse_conflict(status: int, stream: str, key: str | None) -> None:
    if status == _CONFLICT:
        raise IdempotencyError(f"the key {key!r} was used for another message on {stream!r}", "CONFLICT")


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
