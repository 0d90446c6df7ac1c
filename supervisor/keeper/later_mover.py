"""Moves messages to their streams when they are due (`core/later.py`).

1. Every keeper moves what is due, without an election: the script moves each message once, whoever calls it.
2. It looks at the streams that have a handler or a schedule in this pool, and at those that a publisher has noted in
   `supervisor:later`.
3. The server says when one of these sets changes (`broker/key_watch.py`), so nothing is asked while nothing is due.
   Where it can't, the keeper asks each `POLL_S`.
4. A look moves at most `BATCH_MAX` messages of a stream, then the mover goes on with the next stream.
5. A malformed member is logged and stays, without a due time.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from supervisor.broker import later_set as later
from supervisor.broker.cancelling import cancel, wait_at_most
from supervisor.broker.connect import cluster
from supervisor.broker.key_watch import KeyWatch
from supervisor.broker.redis_errors import NOPERM, REDIS_FAULTS, code_of, is_transient
from supervisor.core.later import LaterMessage, digest_of, parse_member
from supervisor.keys import LATER_STREAMS_KEY, later_key
from supervisor.log import FaultLog

#: Messages that are moved by one call of the script: about 1 ms of the server's time.
BATCH_MAX = 200
#: A call moves fewer when they are large.
BATCH_BYTES = 256 * 1024
#: Pause between two looks where the server does not report changes.
POLL_S = 0.25
#: Pause after an error.
_RETRY_S = 0.5
#: Pause after Redis has denied a right: to report changes, to read the noted streams, or to move messages.
_REFUSED_S = 60.0
#: More streams than this are not watched but polled.
_WATCHED_MAX = 1_000
#: Pause between two reads of the streams that publishers have noted: where the server reports changes, and elsewhere.
_STREAMS_S = 3600.0
_POLL_STREAMS_S = 2.0
#: A stream without a message for later is forgotten after this time; a publisher notes it again.
_FORGOTTEN_AFTER_MS = 24 * 3600 * 1000
_NEVER_S = float("inf")


class LaterMover:
    """Moves what is due in the streams of one Redis, until it is cancelled."""

    def __init__(
        self, redis: Redis, url: str, streams: Iterable[str], log: Any, *, connect_timeout_s: float = 5.0
    ) -> None:
        """`streams` are looked at from the beginning, others when a publisher has noted them."""
        self._redis = redis
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._faults = FaultLog(log)
        #: Stream -> when to look at it, by `time.monotonic`.
        self._look_s: dict[str, float] = dict.fromkeys(streams, 0.0)
        #: Stream -> messages to ask for.
        self._batch: dict[str, int] = {}
        self._own = frozenset(self._look_s)
        #: When to read which streams publishers have noted.
        self._streams_s = 0.0
        #: The streams whose changes the server reports; the others are polled.
        self._watched: frozenset[str] = frozenset()
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Move messages until cancelled."""
        watching = asyncio.create_task(self._watch_forever())
        try:
            while True:
                await self._cycle()
                await self._sleep()
        finally:
            await cancel(watching)

    async def _cycle(self) -> None:
        """Look at every stream whose time has come. A fault of Redis is logged, and looked at again soon."""
        try:
            if self._streams_s <= time.monotonic():
                await self._find_streams()
            for stream in [stream for stream, at_s in self._look_s.items() if at_s <= time.monotonic()]:
                await self._look_at(stream)
        except REDIS_FAULTS as error:
            self._faults.redis("can't publish what is due", error)
            await asyncio.sleep(_RETRY_S)
            self._look_at_all()
        else:
            self._faults.resolved("can't publish what is due")

    async def _find_streams(self) -> None:
        """Add the streams that publishers have noted, and forget those that have had nothing for a day."""
        self._streams_s = _NEVER_S  # a change that is reported meanwhile sets it again
        try:
            noted = await later.noted_streams(self._redis)
        except ResponseError as error:  # the streams that are known by themselves go on
            if code_of(error) != NOPERM:
                raise
            self._faults("can't publish what is due", error)
            self._streams_s = min(self._streams_s, time.monotonic() + _REFUSED_S)
            return
        old_ms = time.time() * 1000 - _FORGOTTEN_AFTER_MS
        for stream, noted_ms in noted.items():
            if noted_ms < old_ms and await self._is_forgotten(stream, noted_ms):
                if stream not in self._own:
                    self._look_s.pop(stream, None)
            else:
                self._look_s.setdefault(stream, 0.0)
        pause_s = _STREAMS_S if self._watched else _POLL_STREAMS_S
        self._streams_s = min(self._streams_s, time.monotonic() + pause_s)

    async def _is_forgotten(self, stream: str, noted_ms: int) -> bool:
        """Remove the note of a stream that has no message for later; return whether it had none."""
        try:
            return await later.forget_empty(self._redis, stream, noted_ms)
        except ResponseError as error:
            if code_of(error) != NOPERM:
                raise
            return False  # another team's stream; its own keepers forget it

    async def _look_at(self, stream: str) -> None:
        self._look_s[stream] = _NEVER_S  # a change that is reported meanwhile sets it again
        try:
            next_s = await self._move_some(stream)
            if stream not in self._watched:
                next_s = min(next_s, POLL_S)
        except ResponseError as error:  # concerns one stream; the others go on
            if is_transient(error):
                raise
            self._faults("can't publish what is due", error, key=stream, stream=stream)
            next_s = _REFUSED_S if code_of(error) == NOPERM else _RETRY_S
        self._look_s[stream] = min(self._look_s[stream], time.monotonic() + next_s)

    async def _move_some(self, stream: str) -> float:
        """Move up to a batch; return the time until the next message is due."""
        batch = self._batch.get(stream, BATCH_MAX // 4)
        due = await later.due(self._redis, stream, batch)
        if not due.members:
            return due.next_s
        messages: list[tuple[bytes, LaterMessage]] = []
        for member in due.members:
            try:
                messages.append((member, parse_member(member)))
            except ValueError as error:
                await later.park(self._redis, stream, member)
                self._faults(
                    "malformed message for later",
                    error,
                    level="error",
                    key=stream,
                    stream=stream,
                    id=digest_of(member),
                )
        await later.move(self._redis, stream, messages)
        size = sum(map(len, due.members))
        self._batch[stream] = max(1, min(BATCH_MAX, batch * 2, batch * BATCH_BYTES // max(1, size)))
        return 0.0 if len(due.members) == batch else due.next_s

    async def _sleep(self) -> None:
        """Wait until a stream's time has come or a key was changed."""
        wait_s = min([self._streams_s, *self._look_s.values()]) - time.monotonic()
        self._wake.clear()
        if wait_s > 0:
            # `wait_for` of Python 3.11 may swallow a cancellation.
            await wait_at_most(min(wait_s, _STREAMS_S), self._wake)

    # Changes

    async def _watch_forever(self) -> None:
        """Watch the sets for changes; without a watch, they are polled."""
        if cluster(self._url) is not None:  # a node reports changes of its own keys only
            return
        while True:
            pause_s = _RETRY_S
            try:
                await self._watch()
            except ResponseError:
                pause_s = _REFUSED_S
            except REDIS_FAULTS:
                pass
            self._watched = frozenset()
            self._look_at_all()
            await asyncio.sleep(pause_s)

    async def _watch(self) -> None:
        """Watch the sets of the known streams until a stream is added or forgotten. Raises redis-py's errors."""
        streams = {later_key(stream).encode(): stream for stream in list(self._look_s)[:_WATCHED_MAX]}
        known = set(self._look_s)
        keys = [LATER_STREAMS_KEY, *(later_key(stream) for stream in streams.values())]
        watch = KeyWatch(self._url, keys, connect_timeout_s=self._connect_timeout_s)
        try:
            await watch.connect()
            self._watched = frozenset(streams.values())
            self._look_at_all()
            while known == set(self._look_s):
                changed = await watch.changed()
                self._note(changed, streams)
        finally:
            await watch.close()

    def _note(self, changed: list[bytes] | None, streams: dict[bytes, str]) -> None:
        """Look at the streams whose sets were changed."""
        if changed is None:
            self._look_at_all()
            return
        for key in changed:
            if (stream := streams.get(key)) in self._look_s and stream is not None:
                self._look_s[stream] = 0.0
            elif key == LATER_STREAMS_KEY.encode():
                self._streams_s = 0.0
        if changed:
            self._wake.set()

    def _look_at_all(self) -> None:
        self._streams_s = 0.0
        for stream in self._look_s:
            self._look_s[stream] = 0.0
        self._wake.set()
