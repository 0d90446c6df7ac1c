"""Gives the messages of a handler with `key` or `group_concurrency` their turns, before they may run.

1. What was read gets its place in the row of its key. What may run goes on to the executor; the rest waits in Redis and
   is forgotten here.
2. A place may only be given behind those of earlier entries. Where another worker has read entries and not yet given
   them theirs (it is busy, or dead), this one reads them and does it.
3. A script that settles a message hands back the next one of its key, which is run as a retry that is due at once.
4. From time to time, waiting rows are checked: a message that has the turn may have been deleted by another program.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from supervisor.core.message_key import key_reader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from supervisor.broker.turns import Mode, Place, Taken
    from supervisor.handling.loader import HandlerSpec
    from supervisor.messages import Message
    from supervisor.worker.retry_or_dead_letter import Failures
    from supervisor.worker.retry_queue import RetryQueue
    from supervisor.worker.run_control import RunControl
    from supervisor.worker.source import Source
    from supervisor.worker.turn_settler import TurnSettler

#: How often rows are looked at, and how many messages of those that have waited this long.
LOOK_S = 1.0
_LOOK_COUNT = 50
_LOOK_IDLE_MS = 1_000
#: While this many messages of a group wait for their turns, nothing more is read.
WAITING_MAX = 1_000_000


class TurnGate:
    """The turns of one handler in one worker."""

    def __init__(
        self,
        spec: HandlerSpec,
        settler: TurnSettler,
        control: RunControl,
        failures: Failures,
        retries: RetryQueue,
        sources: Sequence[Source],
    ) -> None:
        self._turns = settler.turns
        self._control = control
        self._failures = failures
        self._retries = retries
        self._sources = sources
        #: The messages in hand that have a turn.
        self._held = settler.held
        key = spec.options.key
        self._key, self._field = key_reader(key), key if isinstance(key, str) else ""
        self._limited = spec.options.group_concurrency > 0
        settler.passed_on = self._passed_on
        #: Rows whose next message was perhaps taken over by an answer that was lost.
        self._unsure: set[bytes] = set()
        self._look_now = asyncio.Event()
        #: Messages were removed from rows: there may be more of that kind.
        self._hurry = False
        #: So many messages of the group wait that nothing more is read.
        self.full = False

    async def begin(self) -> None:
        """Give places to all that is pending, where that was not done yet. Raises redis-py's errors and OSError."""
        upto = await self._turns.begin(self._field)
        if upto is None:
            return
        after = b"0-0"
        while page := await self._turns.pending(after, upto):
            await self._admit_others(page)
            after = page[-1][0]
        await self._admit_others([], upto)

    async def admit(self, source: Source, messages: Sequence[Message], *, new: bool) -> list[Message]:
        """Return those of the messages that may run now. Raises redis-py's errors and OSError.

        `new`: they were just read; otherwise they were found in the pending list.
        """
        pairs = [
            (message, place)
            for message in messages
            if (source, message.entry) not in self._held and (place := self._place(source, message)) is not None
        ]
        if not pairs:
            return []
        mode: Mode = "copies" if source.replays else "new" if new else "own"
        places = [place for _, place in pairs]
        admission = await self._turns.admit(mode, places)
        while admission.missing_after is not None:
            await self._fill(admission.missing_after, b"(" + places[0].name if new else places[-1].name)
            admission = await self._turns.admit(mode, places)
        self.take_over(admission.taken)
        # Where another worker has given it its place, a settle may have taken it over meanwhile. All answers come by
        # one connection, so what was taken over before this answer is still held.
        return [
            self._hold(source, message, place)
            for (message, place), may_run in zip(pairs, admission.flags, strict=True)
            if may_run and (source, message.entry) not in self._held
        ]

    async def again(self, messages: Sequence[Message]) -> list[Message]:
        """Return those of the messages, whose retry is due, that may run. Raises redis-py's errors and OSError.

        They have kept their turns. The others have no key, or could not be given a place before.
        """
        found = []
        for source in self._sources:
            own = [message for message in messages if message.origin is source]
            found += [message for message in own if (source, message.entry) in self._held]
            others = [message for message in own if (source, message.entry) not in self._held]
            found += await self.admit(source, others, new=False)
        return found

    def hold(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages that kept their turns while they were forgotten."""
        found = []
        for message in messages:
            source = self._sources[message.origin is self._sources[1]]
            if (place := self._place(source, message)) is not None:
                found.append(self._hold(source, message, place))
        return found

    def forget(self, messages: Iterable[Message]) -> None:
        """Forget messages that are no longer in hand; they keep their turns."""
        for message in messages:
            self._held.pop((message.origin, message.entry), None)  # type: ignore[arg-type]

    def take_over(self, taken: Iterable[Taken]) -> None:
        """Run the messages whose turn has come, and which this consumer owns now."""
        for one in taken:
            source = self._sources[one.replays]
            if (source, one.entry) in self._held or self._control.stopping:  # it stays pending, for the next process
                continue
            (message,) = source.messages([[one.entry, one.flat]])
            if (place := self._place(source, message)) is not None:
                self._retries.add(self._hold(source, message, place), 0)

    def _passed_on(self, taken: list[Taken], unsure: set[bytes]) -> None:
        self.take_over(taken)
        if unsure:
            self._unsure |= unsure
            self._look_now.set()

    async def run(self) -> None:
        """Look at rows that wait, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._look_now.wait()
            self._look_now.clear()
            with contextlib.suppress(RedisError, OSError):  # others report it
                await self._look()

    async def _look(self) -> None:
        interval_ms = 0 if self._hurry else int(LOOK_S * 1000)
        found = await self._turns.waiting(interval_ms, _LOOK_COUNT, _LOOK_IDLE_MS)
        self.full = found.number >= WAITING_MAX
        rows, free = {*self._unsure, *found.rows}, []
        for source, entries in zip(self._sources, (found.entries, found.copies), strict=True):
            for message in source.messages([entry for entry in entries if entry]):
                place = self._place(source, message)
                if place is not None and place.row is not None:
                    rows.add(place.row)
                elif place is not None and not self._limited:
                    free.append(place.name)
        self._hurry = False
        if rows or free or (self._limited and (found.entries or found.copies)):
            gone, taken = await self._turns.check(rows, free)
            self._unsure -= rows
            self.take_over(taken)
            if gone:
                self._hurry = True
                self._look_now.set()
        self._control.notify()

    async def _fill(self, after: bytes, upto: bytes) -> None:
        """Give their places to entries that others have read."""
        if not after:
            await self.begin()
        while after and (page := await self._turns.entries(after, upto)):
            after = page[-1][0]
            await self._admit_others(page, after)

    async def _admit_others(self, entries: Sequence[Any], upto: bytes = b"") -> None:
        source = self._sources[0]
        messages = source.messages([entry for entry in entries if entry[1] is not None])
        places = [place for message in messages if (place := self._place(source, message, fails=False)) is not None]
        admission = await self._turns.admit("others", places, upto)
        self.take_over(admission.taken)

    def _place(self, source: Source, message: Message, *, fails: bool = True) -> Place | None:
        """Return the place of a message; None when the function of its key raises, and then with `fails` it failed."""
        try:
            key = self._key(message)
        except Exception as error:
            if fails:
                self._failures.failed(message, error)
            return None
        name = message.id.encode() + b"@" + message.entry if source.replays else message.entry
        return self._turns.place(name, key)

    def _hold(self, source: Source, message: Message, place: Place) -> Message:
        if place.row is not None or self._limited:
            message.recorded = True  # settled by a script, which passes its turn on
            self._held[source, message.entry] = place
        return message
