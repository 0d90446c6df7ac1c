"""The settler of a handler with turns: settles a message and takes over the next one of its key."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from supervisor.broker.turns import Turns, taken

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from supervisor.broker.command_connection import Argument, CommandConnection
    from supervisor.broker.scripts import Script
    from supervisor.broker.turns import Place, Taken
    from supervisor.handling.loader import HandlerSpec
    from supervisor.worker.settler import Settler
    from supervisor.worker.source import Source

#: Messages that one script settles at most: the next ones of all their rows come in its reply.
_IDS_MAX = 200


class TurnSettler:
    """A `Settler` that also passes turns on. What needs no turn is settled as it is elsewhere."""

    def __init__(self, spec: HandlerSpec, settler: Settler, commands: CommandConnection, consumer: str) -> None:
        self._settler = settler
        self._on_dead = spec.options.on_dead
        self._notes_keys = callable(spec.options.key)
        self.turns = Turns(
            commands,
            spec.stream,
            spec.group,
            consumer,
            per_key=spec.options.per_key,
            per_group=spec.options.group_concurrency,
        )
        self._loop = asyncio.get_running_loop()
        #: The messages in hand that have a turn or need none, by entry, until their outcome is confirmed.
        self.held: dict[Source, dict[bytes, Place]] = {}
        #: Gets the messages that were taken over, and the fields of rows where an earlier answer was perhaps lost.
        self.passed_on: Callable[[list[Taken], set[bytes]], None]
        #: Done and not yet with the settler.
        self._done: dict[Source, list[bytes]] = {}
        self.wake = settler.wake
        self.retry_later = settler.retry_later
        self.unconfirmed_retry = settler.unconfirmed_retry
        self.is_recording = settler.is_recording
        self.unmark = settler.unmark
        self.charge = settler.charge
        self.note_emits = settler.note_emits

    def add(self, source: Source) -> None:
        """Settle what is `done` of this source with each cycle of the settler."""
        self.held[source] = {}
        source.settle = partial(self._settle_done, source)
        self._settler.add(source)

    @property
    def backlog(self) -> int:
        """How many messages wait for their ack to be sent or confirmed."""
        return self._settler.backlog + sum(map(len, self._done.values()))

    def unconfirmed(self, source: Source) -> set[bytes]:
        """Return the ids of `source` whose outcome is decided and not confirmed."""
        return self._settler.unconfirmed(source).union(self._done.get(source, ()))

    def ack_recorded(self, source: Source, *ids: bytes) -> None:
        """Ack messages; those of one iteration of the event loop together."""
        for entry in ids:
            place = self.held[source].get(entry)
            if place is None:
                self._settler.ack_recorded(source, entry)
                continue
            if not self._done:
                self._loop.call_soon(self._send)
            self._done.setdefault(source, []).append(entry)

    def dead_letter(self, source: Source, entry: bytes, letter: Sequence[Argument]) -> None:
        """Write the message's dead letter and ack it, in one script."""
        place = self.held[source].get(entry)
        if place is None:
            self._settler.dead_letter(source, entry, letter)
            return
        script, arguments = self.turns.dead_letter(
            place, source.retries, source.crashes, letter, replays=source.replays, on_dead=self._on_dead
        )
        self._run(source, [entry], [place], script, arguments)

    async def flush(self) -> None:
        """Wait until everything decided so far is confirmed, except what the server refuses: that stays pending."""
        self._send()
        await self._settler.flush()

    def _send(self) -> None:
        done, self._done = self._done, {}
        for source, entries in done.items():
            self._settle_done(source, entries)

    def _settle_done(self, source: Source, entries: list[bytes]) -> None:
        """Settle messages that are done. One that is not held has lost its place, with its turn."""
        held = self.held[source]
        for at in range(0, len(entries), _IDS_MAX):
            part = entries[at : at + _IDS_MAX]
            places: Sequence[Place] = list(map(held.get, part))  # type: ignore[arg-type]
            if not all(places):
                places = [held.get(entry) or (entry, b"") for entry in part]
            script, arguments = self.turns.settle(places, source.retries, source.crashes, replays=source.replays)
            self._run(source, part, places, script, arguments)

    def _run(
        self,
        source: Source,
        entries: Sequence[bytes],
        places: Sequence[Place],
        script: Script,
        arguments: Sequence[Argument],
    ) -> None:
        def answered(reply: Any, repeated: bool) -> None:
            held = self.held[source]
            for entry in entries:
                held.pop(entry, None)
            self.passed_on(taken(reply[1]), {field for _, field in places} if repeated else set())

        self._settler.run_script(source, script, arguments, tuple(entries), is_ack=True, answered=answered)
        if self._notes_keys:
            self._settler.forget_keys(source, [name for name, _ in places])
