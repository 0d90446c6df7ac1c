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

from supervisor.broker.cancelling import wait_at_most
from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.core.message_key import key_reader, keys_reader
from supervisor.keys import turn_field

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from supervisor.broker.turns import Admission, Mode, Place, Taken
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
#: Messages that one script admits at most: Lua's unpack takes about 8,000 arguments, and there are two for each.
_ADMITTED_MAX = 2_000
#: How long a worker waits for another one that has read earlier entries and not yet given them their places.
_OTHERS_S = 0.006
_OTHERS_POLL_S = 0.001


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
        #: The messages in hand that have a turn, or need none.
        self._held = settler.held
        key = spec.options.key
        self._key, self._keys = key_reader(key), keys_reader(key)
        self._field = key if isinstance(key, str) else ""
        self._notes_keys = callable(key)
        self._limited = spec.options.group_concurrency > 0
        settler.passed_on = self._passed_on
        #: Fields of rows whose next message was perhaps taken over by an answer that was lost. The empty one stands for
        #: messages without a key, of which the row of the group may have been passed on.
        self._unsure: set[bytes] = set()
        self._loop = asyncio.get_running_loop()
        self._look_now = asyncio.Event()
        #: Messages were removed from rows: there may be more of that kind.
        self._hurry = False
        #: Messages of the group that wait, as far as this worker knows.
        self.waiting = 0

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
        admitted: list[Message] = []
        try:
            for at in range(0, len(messages), _ADMITTED_MAX):
                admitted += await self._admit(source, messages[at : at + _ADMITTED_MAX], new=new)
        except REDIS_FAULTS:  # a scan will find them
            self.forget(admitted)
            raise
        return admitted

    async def _admit(self, source: Source, messages: Sequence[Message], *, new: bool) -> list[Message]:
        messages, places = self._places(source, self._not_held(source, messages))
        if not places:
            return []
        mode: Mode = "copies" if source.replays else "new" if new else "own"
        if self._notes_keys:
            await self._turns.note_keys(places)
        admission = await self._turns.admit(mode, places)
        if new and admission.missing_after:
            admission = await self._when_others_have(mode, places, admission)
        while admission.missing_after is not None:
            await self._fill(admission.missing_after, b"(" + places[0][0] if new else places[-1][0])
            admission = await self._turns.admit(mode, places)
        self.take_over(admission.taken)
        for index in reversed(admission.idle):
            del messages[index], places[index]
        # Where another worker has given it its place, a settle may have taken it over meanwhile. All answers come by
        # one connection, so what was taken over before this answer is still held.
        if len(left := self._not_held(source, messages)) < len(messages):
            messages, places = self._places(source, left)
        self._held[source].update(zip([message.entry for message in messages], places, strict=True))
        return messages

    def _not_held(self, source: Source, messages: Sequence[Message]) -> Sequence[Message]:
        """Return those of the messages that have no turn here."""
        held = self._held[source]
        if held.keys().isdisjoint([message.entry for message in messages]):
            return messages
        return [message for message in messages if message.entry not in held]

    async def _when_others_have(self, mode: Mode, places: Sequence[Place], admission: Admission) -> Admission:
        """Admit messages when another worker has given their places to those before, which it is about to do.

        A worker that is dead or busy is not waited for: then places are still missing.
        """
        until_s = self._loop.time() + _OTHERS_S
        while admission.missing_after and (left_s := until_s - self._loop.time()) > 0:
            if await self._turns.admitted() != admission.missing_after:
                admission = await self._turns.admit(mode, places)
            elif left_s < _OTHERS_S / 2:
                await asyncio.sleep(_OTHERS_POLL_S)
        return admission

    async def again(self, messages: Sequence[Message]) -> list[Message]:
        """Return those of the messages, whose retry is due, that may run. Raises redis-py's errors and OSError.

        They have kept their turns. The others have no key, or could not be given a place before.
        """
        found = []
        for source in self._sources:
            own = [message for message in messages if message.origin is source]
            held = self._held[source]
            found += [message for message in own if message.entry in held]
            others = [message for message in own if message.entry not in held]
            found += await self.admit(source, others, new=False)
        return found

    def hold(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages that kept their turns while they were forgotten."""
        found = []
        for message in messages:
            source: Source = message.origin  # type: ignore[assignment]
            if (place := self._place(source, message)) is not None:
                self._held[source][message.entry] = place
                found.append(message)
        return found

    def forget(self, messages: Iterable[Message]) -> None:
        """Forget messages that are no longer in hand; they keep their turns."""
        for message in messages:
            self._held[message.origin].pop(message.entry, None)  # type: ignore[index]

    def take_over(self, taken: Sequence[Taken]) -> None:
        """Run the messages whose turn has come, and which this consumer owns now."""
        if self._control.stopping:  # they stay pending, for the next process
            return
        for source in self._sources:
            held = self._held[source]
            own = [(entry, flat) for replays, entry, flat in taken if replays == source.replays and entry not in held]
            for message, place in zip(*self._places(source, source.messages(own)), strict=True):
                held[message.entry] = place
                self._retries.add(message, 0)

    def _passed_on(self, taken: list[Taken], unsure: Iterable[bytes]) -> None:
        self.take_over(taken)
        if unsure:
            self._unsure.update(unsure)
            self._look_now.set()

    async def run(self, find_again: Callable[[], Awaitable[None]]) -> None:
        """Look at rows that wait, until cancelled; `find_again` has the pending lists read."""
        while True:
            await wait_at_most(LOOK_S, self._look_now)
            self._look_now.clear()
            with contextlib.suppress(*REDIS_FAULTS):  # others report it
                if await self._look():
                    await find_again()

    async def _look(self) -> bool:
        """Look at rows that wait; return whether something has its turn here, or may have it, and is not in hand.

        A predecessor may have run it, and it may have to wait for a retry: only a scan shows that.
        """
        interval_ms = 0 if self._hurry else int(LOOK_S * 1000)
        found = await self._turns.waiting(interval_ms, _LOOK_COUNT, _LOOK_IDLE_MS)
        self.waiting = found.number
        fields, free = {*self._unsure, *found.rows} - {b""}, []
        for source, entries in zip(self._sources, (found.entries, found.copies), strict=True):
            for message in source.messages([entry for entry in entries if entry]):
                place = self._place(source, message)
                if place is None:
                    continue
                name, field = place
                if field:
                    fields.add(field)
                elif not self._limited:
                    free.append(name)
        self._hurry = is_missing = False
        if fields or free or (self._limited and (found.entries or found.copies or self._unsure)):
            is_missing = await self._check(fields, free)
        self._control.notify()
        return is_missing

    async def _check(self, fields: set[bytes], free: Sequence[bytes]) -> bool:
        """Check these rows and messages; return what `_look` does."""
        unsure = self._unsure.copy()
        try:
            checked = await self._turns.check(fields, free)
        except REDIS_FAULTS:  # a lost answer may have said what this consumer has to run
            return True
        self._unsure -= unsure
        self.take_over(checked.taken)
        if checked.gone:
            self._hurry = True
            self._look_now.set()
        return any(entry not in self._held[self._sources[replays]] for replays, entry in checked.own)

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
        _, places = self._places(source, messages, fails=False)
        admission = await self._turns.admit("others", places, upto)
        self.take_over(admission.taken)

    def _places(
        self, source: Source, messages: Sequence[Message], *, fails: bool = True
    ) -> tuple[list[Message], list[Place]]:
        """Return those of the messages that have a place, and their places.

        One has none when the function of its key raises, and then with `fails` it failed.
        """
        if not source.replays and (keys := self._keys(messages)) is not None:
            return list(messages), list(zip([one.entry for one in messages], map(turn_field, keys), strict=True))
        read, found, places = self._key, [], []
        for message in messages:
            try:
                key = read(message)
            except Exception as error:
                if fails:
                    self._failures.failed(message, error)
                continue
            found.append(message)
            places.append((source.name_of(message), b"" if key is None else turn_field(key)))
        return found, places

    def _place(self, source: Source, message: Message) -> Place | None:
        """Return the place of a message, if it has one."""
        _, places = self._places(source, [message])
        return places[0] if places else None
