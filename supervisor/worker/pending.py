"""A consumer's own pending list: reading it, sorting what a predecessor left, charging a crash, handing it over.

The list is read when nothing else is on the reader's wire, so an entry can't be met both here and in the reply of a
read for new ones. It is read in pages that the server may send and the connection can carry:

1. A page whose reply was lost is asked for smaller: a server closes a connection whose reply passes its
   `client-output-buffer-limit`, and what it would have sent is pending by then, so that it meets it again.
2. A single entry on a slow connection gets more and more time.
3. A single large entry whose reply is lost again and again can't be read at all: it is given up, or it would hold up
   everything behind it for ever.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError

from supervisor.broker.command_connection import REPLY_SLACK_S, Argument
from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.broker.scripts import DELETE_CONSUMER
from supervisor.core.crash_charge import after_crash, marked
from supervisor.core.ids import parse_id, parse_number
from supervisor.errors import SupervisorError
from supervisor.shared_consumer import MarksOwner
from supervisor.shared_figures import RECLAIM_BOUNDS_S, FigureField
from supervisor.shared_state import SlotField
from supervisor.worker.adopted import Adopted, classify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from collections.abc import Set as AbstractSet

    from supervisor.broker.group_reader import Entries, GroupReader
    from supervisor.handling.loader import HandlerSpec
    from supervisor.messages import Message
    from supervisor.worker.resources import Resources
    from supervisor.worker.retry_or_dead_letter import Failures
    from supervisor.worker.source import Source

PAGE = 500
_SMALLER = 8
#: The longest wait for one page.
_SLACK_S_MAX = 30.0
#: An entry whose reply was lost this often, alone and one time after the other, is not waited for any more.
LOST_MAX = 5


class PendingList:
    """What Redis holds pending for one consumer of one source."""

    def __init__(self, spec: HandlerSpec, source: Source, resources: Resources, failures: Failures) -> None:
        self._spec = spec
        #: Returns those of the messages that are to be run here; None: all are.
        self.admit: Callable[[list[Message]], Awaitable[list[Message]]] | None = None
        self._source = source
        self._resources = resources
        self._commands = resources.commands
        self._failures = failures
        self._pages = _Pages()
        #: Its consumer has read all its lists: what a predecessor left is known, and no crash is charged any more.
        self.opened = False

    async def make_group(self) -> bool:
        """Create the group where it is missing; False when a full server refuses it. Raises redis-py's errors."""
        # A group that has disappeared starts again at 0; otherwise what arrived in between would be skipped.
        start = "0" if self.opened or self._source.replays else self._spec.options.start
        try:
            await self._commands.call("XGROUP", "CREATE", self._source.key, self._source.group, start, "MKSTREAM")
        except OutOfMemoryError:
            # Refused even where the group exists, which can still be read: that frees memory in the end.
            return not self._source.replays or bool(await self._commands.call("EXISTS", self._source.key))
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        else:
            if self.opened and not self._source.replays:
                self._resources.faults(
                    "group created again",
                    SupervisorError("FLUSHALL, DEL, XGROUP DESTROY or a server without its data"),
                    level="error",
                    key=f"{self._source.stream} {self._source.group}",
                    stream=self._source.stream,
                    group=self._source.group,
                )
        return True

    async def scan(self, reader: GroupReader, known: AbstractSet[bytes]) -> Adopted:
        """Return all that is pending but `known`, sorted by what is to be done with it.

        Raises redis-py's errors, OSError and TimeoutError; the next scan begins from the start.
        """
        found = await self._read_all(reader, known)
        if not self.opened:
            await self._charge_marked(found)
        started = (0, 0) if self.opened else self._source.marks.started()
        often = await self._delivered_often(found) if self._is_memory_new else frozenset()
        self._resources.shared.add(SlotField.ADOPTED, len(found))
        if not self.opened:
            self._note_reclaimed(len(found))
        retries = self._newest(found, await self._records(self._source.retries, found))
        crashes = await self._records(self._source.crashes, found)
        kept: list[Message] = []
        kept_retries: list[bytes | None] = []
        for message, retry, count in zip(found, retries, crashes, strict=True):
            message.recorded |= count is not None
            # Its dead letter may have been lost with the process that was to write it.
            if not self._give_up_if_due(message, parse_number(count) or 0):
                kept.append(message)
                kept_retries.append(retry)
        adopted = classify(kept, kept_retries, started, int(time.time() * 1000), often)
        self._source.figures.add(FigureField.REDELIVERED, len(adopted.plain) + len(adopted.suspects))
        return adopted

    def note_opened(self, suspects: Iterable[Message]) -> None:
        """Note that what a predecessor left is known; of that, `suspects` must run alone."""
        self.opened, marks = True, self._source.marks
        own = [parse_id(message.entry) for message in suspects if message.origin is self._source]
        if own:
            marks.raise_started(*max(own))
        marks.owner = MarksOwner.BOTH if own else MarksOwner.WORKER

    def note_cleared(self) -> None:
        """Note that no suspect is left."""
        if self.opened:
            self._source.marks.owner = MarksOwner.WORKER

    # What runs in isolation is marked in shared memory, and in Redis in case that is lost too: a container that is out
    # of memory is killed as one, an app has no arbiter. It costs a round trip, for suspects only.

    async def mark(self, entry: bytes) -> None:
        """Mark `entry`, which is about to run with nothing else in hand. Start it before anything is awaited."""
        await self._try("HSET", self._source.isolated, self._resources.consumer, entry)
        self._source.marks.set_isolated(*parse_id(entry))

    def unmark(self) -> None:
        """Remove the mark because the handler has ended; the mark in Redis goes with the outcome."""
        self._source.marks.set_isolated(0, 0)
        self._resources.settler.unmark(self._source, self._resources.consumer)

    async def clear_mark(self) -> None:
        """Remove the mark, if there is one, because the worker ends on purpose."""
        if self.opened and self._source.marks.isolated() is not None:
            self._source.marks.set_isolated(0, 0)
            await self._try("HDEL", self._source.isolated, self._resources.consumer)

    async def _try(self, *command: Argument) -> None:
        # Without Redis, the mark in shared memory must do: a fault of Redis must not hold up a message in hand.
        with contextlib.suppress(*REDIS_FAULTS):
            await self._commands.call(*command)

    @property
    def _is_memory_new(self) -> bool:
        """Whether only Redis knows what a predecessor did: no worker has used the marks in shared memory before."""
        return self._source.marks.owner == MarksOwner.NOBODY

    async def charge(self, message: Message) -> bool:
        """Count a crash against the message; True when it was one too many and it became a dead letter."""
        crashes = int(await self._commands.call("HINCRBY", self._source.crashes, message.entry, 1))
        message.recorded = True
        return self._give_up_if_due(message, crashes)

    async def hand_over(self, successor: str) -> None:
        """Give all of it to the consumer `successor`, and delete this consumer. Raises redis-py's errors."""
        key, group, consumer = self._source.key, self._source.group, self._resources.consumer
        start = "-"
        while pending := await self._commands.call("XPENDING", key, group, start, "+", PAGE, consumer):
            ids = [entry[0] for entry in pending]
            # JUSTID: a change of owner is not a delivery.
            claimed = await self._commands.call("XCLAIM", key, group, successor, 0, *ids, "JUSTID")
            self._source.figures.add(FigureField.RECLAIMED_DRAIN, len(claimed))
            start = "(" + ids[-1].decode()
        await self._commands.script(DELETE_CONSUMER, [key], group, consumer)
        self._source.marks.clear()  # they say nothing about what this consumer is given later

    def _note_reclaimed(self, messages: int) -> None:
        """Count what a predecessor left, with the time since its end where that is known."""
        self._source.figures.add(FigureField.RECLAIMED_CHILD_EXIT, messages)
        shared = self._resources.shared
        if messages and (exited_ns := shared.get(SlotField.EXITED_NS)):
            delay_s = (time.monotonic_ns() - exited_ns) / 1e9
            shared.observe(SlotField.RECLAIM_DELAY_US, RECLAIM_BOUNDS_S, max(0.0, delay_s), messages)

    def _give_up_if_due(self, message: Message, crashes: int) -> bool:
        dead = after_crash(crashes, self._spec.options)
        if dead is not None:
            self._failures.give_up(message, dead, None, self._resources.crash)
        return dead is not None

    async def _read_all(self, reader: GroupReader, known: AbstractSet[bytes]) -> list[Message]:
        await self._give_up_unreadable()
        found: list[Message] = []
        async for page in self._pages.read(reader, self._source.key):
            new = [entry for entry in page if entry[0] not in known]
            deleted = [entry for entry, flat in new if flat is None]
            if deleted:
                self._resources.settler.ack_recorded(self._source, *deleted)
                self._resources.shared.add(SlotField.TRIMMED, len(deleted))
            messages = self._source.messages([entry for entry in new if entry[1] is not None])
            found += messages if self.admit is None else await self.admit(messages)
        return found

    async def _give_up_unreadable(self) -> None:
        after = self._pages.unreadable_after
        if after is None:
            return
        start = b"-" if after == b"0" else b"(" + after
        pending = await self._commands.call(
            "XPENDING", self._source.key, self._source.group, start, "+", 1, self._resources.consumer
        )
        if pending:
            await self._failures.give_up_unread(self._source, pending[0][0])
        self._pages.forget()

    async def _records(self, key: str, found: list[Message]) -> list[bytes | None]:
        """Return what the hash at `key` has of each, in the same order."""
        ids = [message.entry for message in found]
        records: list[bytes | None] = []
        for at in range(0, len(ids), PAGE):
            records += await self._commands.call("HMGET", key, *ids[at : at + PAGE])
        return records

    def _newest(self, found: list[Message], records: list[bytes | None]) -> list[bytes | None]:
        """Return the records of retries, with those that this worker has decided and Redis does not have yet."""
        unconfirmed = self._resources.settler.unconfirmed_retry
        return [
            unconfirmed(self._source, message.entry) or record for message, record in zip(found, records, strict=True)
        ]

    async def _charge_marked(self, found: list[Message]) -> None:
        """Charge the message that was marked as running alone at the crash, if there is one."""
        key, consumer, marks = self._source.isolated, self._resources.consumer, self._source.marks
        by_id = {message.entry: message for message in found}
        isolated = marks.isolated()  # which takes precedence: the arbiter saw why that process ended
        noted = await self._commands.call("HGET", key, consumer) if self._is_memory_new else None
        entry = noted if noted in by_id else marked(by_id, isolated)
        if entry is not None:
            marks.raise_started(*parse_id(entry))
        if noted or isolated is not None or not self._is_memory_new:  # Redis's mark may be older than shared memory
            # Before the message is charged: no crash is counted twice.
            await self._commands.call("HDEL", key, consumer)
            marks.set_isolated(0, 0)
        if entry is None:
            return
        # Before the answer, which may be lost, so that all of this is repeated: never twice for one crash.
        self._resources.shared.set(SlotField.ISOLATING, 1)
        if await self.charge(by_id[entry]):
            found.remove(by_id[entry])

    async def _delivered_often(self, found: list[Message]) -> frozenset[bytes]:
        """Return entries that were redelivered at least `max_crashes` times and never settled."""
        often: set[bytes] = set()
        start = b"-"
        while found and start:
            page = await self._commands.call(
                "XPENDING", self._source.key, self._source.group, start, "+", PAGE, self._resources.consumer
            )
            often |= {entry for entry, _, _, deliveries in page if deliveries >= self._spec.options.max_crashes}
            start = b"(" + page[-1][0] if page else b""
        if often:  # which says nothing about the last crash
            self._resources.shared.set(SlotField.ISOLATING, 1)
        return frozenset(often)


class _Pages:
    """The pages of one pending list, as large as their replies get through."""

    def __init__(self) -> None:
        self._count = PAGE
        self._slack_s = REPLY_SLACK_S
        self._lost_after = b""
        self._lost = 0

    @property
    def unreadable_after(self) -> bytes | None:
        """The id after which an entry seems to be unreadable; None when all can be read."""
        return self._lost_after if self._lost >= LOST_MAX else None

    async def read(self, reader: GroupReader, stream: str) -> AsyncIterator[Entries]:
        """Yield all pages. Raises redis-py's errors and OSError."""
        after = b"0"
        while True:
            await reader.send_pending(stream, self._count, after, self._slack_s)
            try:
                reply = await reader.receive()
            except TimeoutError:
                self._took_too_long()
                raise
            except (RedisConnectionError, OSError):
                self._was_lost(after)
                raise
            entries = reply[0][1] if reply else []
            if not entries:
                break
            after = entries[-1][0]
            yield entries
        self.forget()
        # Only at its end: otherwise a page that is too large again would have all of it read from the start.
        self._count, self._slack_s = min(PAGE, self._count * 2), REPLY_SLACK_S

    def forget(self) -> None:
        """Forget the lost replies: nothing is in the way any more."""
        self._lost = 0

    def _took_too_long(self) -> None:
        if self._count == 1:
            self._slack_s = min(_SLACK_S_MAX, 2 * self._slack_s)
        self._count = max(1, self._count // _SMALLER)

    def _was_lost(self, after: bytes) -> None:
        if self._count == 1:
            self._lost = self._lost + 1 if after == self._lost_after else 1
            self._lost_after = after
        self._count = max(1, self._count // _SMALLER)
