"""Gives messages their turns in Redis: the scripts of `include/turns.lua` and their keys.

It knows rows and names, not what a key means: the caller computes the key of each message.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from redis.exceptions import OutOfMemoryError

from supervisor.broker.scripts import (
    ADMIT,
    DEAD_LETTER_TURN,
    SETTLE_TURNS,
    TURNS_BEGIN,
    TURNS_CHECK,
    TURNS_WAITING,
    Script,
)
from supervisor.keys import dead_key, group_turn_key, message_keys_key, released_key, replay_key, turns_key

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from supervisor.broker.command_connection import Argument, CommandConnection

#: Entries that are looked at or given their places with one command.
PAGE = 500
Mode = Literal["new", "own", "copies", "others"]
#: A place in a row: the name of the message, and the field that stands for the row (`include/turns.lua`), empty for one
#: without a key. The name is the id; of a copy in the replay stream `<id of the message>@<id of the copy>`.
Place = tuple[bytes, bytes]


class Taken(NamedTuple):
    """A message whose turn has come, and which its consumer has taken over."""

    replays: bool
    entry: bytes
    flat: list[bytes]


class Admission(NamedTuple):
    """The answer to `admit`."""

    #: The indexes of the messages that may not run now.
    idle: list[int]
    taken: list[Taken]
    #: Entries beyond this id lack their places, and nothing was done; None when it was.
    missing_after: bytes | None = None


class Checked(NamedTuple):
    """The answer to `turns_check`."""

    #: Messages that no longer exist, whose turns were passed on.
    gone: int
    taken: list[Taken]
    #: What has a turn and was this consumer's before: whether it is of the replay stream, and its id.
    own: list[tuple[bool, bytes]]


class WaitingTurns(NamedTuple):
    """What waits for its turn."""

    number: int
    #: Some of it, as [id, fields]: of the stream, and of the replay stream.
    entries: list[Any]
    copies: list[Any]
    #: The fields of rows to check: turns were released while no worker was there to pass them on, or a message is gone.
    rows: list[bytes]


class Turns:
    """The turns of one group, as one consumer sees them. All methods raise redis-py's errors and OSError."""

    def __init__(
        self, commands: CommandConnection, stream: str, group: str, consumer: str, *, per_key: int, per_group: int
    ) -> None:
        """Prepare for one consumer; with 0 as `per_group`, the group has no limit."""
        self._commands = commands
        self._stream = stream
        self._group = group
        self._turns = turns_key(stream, group)
        self._released = released_key(stream, group)
        self._keys = (stream, replay_key(stream, group), self._turns, group_turn_key(stream, group))
        self._arguments = (group, consumer, per_key, per_group)
        self._dead = dead_key(stream, group)
        self._message_keys = message_keys_key(stream, group)

    async def begin(self, field: str) -> bytes | None:
        """Note the field that is the key; return up to which id all that is pending lacks its place; None: nothing."""
        found = await self._commands.script(TURNS_BEGIN, (self._stream, self._turns), self._group, field)
        return bytes(found) or None

    async def pending(self, after: bytes, upto: bytes) -> list[Any]:
        """Return a page of all pending entries beyond `after`, as [id, fields]; [id, None] for a deleted one."""
        rows = await self._commands.call("XPENDING", self._stream, self._group, b"(" + after, upto, PAGE)
        found = []
        for entry, *_ in rows:
            page = await self._commands.call("XRANGE", self._stream, entry, entry)
            found.append(page[0] if page else [entry, None])
        return found

    async def entries(self, after: bytes, upto: bytes) -> list[Any]:
        """Return a page of the stream's entries beyond `after`, as [id, fields]."""
        found: list[Any] = await self._commands.call("XRANGE", self._stream, b"(" + after, upto, "COUNT", PAGE)
        return found

    async def admitted(self) -> bytes | None:
        """Return the last entry up to which all entries have places, or None if nothing is recorded."""
        found: bytes | None = await self._commands.call("HGET", self._turns, "admitted")
        return found

    async def admit(self, mode: Mode, places: Sequence[Place], upto: bytes = b"") -> Admission:
        """Give messages their places; see `admit.lua`."""
        names = _names_and_fields(places)
        status, *rest = await self._commands.script(ADMIT, self._keys, *self._arguments, mode, upto, *names)
        if status:
            return Admission([], [], b"" if status == b"none" else status)
        idle, found = rest
        return Admission([number - 1 for number in idle], taken(found))

    async def note_keys(self, places: Sequence[Place]) -> None:
        """Note the keys of messages, for `explain`; a full server keeps none."""
        pairs = [word for name, field in places if field for word in (name, field[1:])]
        if pairs:
            with contextlib.suppress(OutOfMemoryError):
                await self._commands.call("HSET", self._message_keys, *pairs)

    async def waiting(self, interval_ms: int, count: int, idle_ms: int) -> WaitingTurns:
        """Return what waits: `count` of those that have waited for `idle_ms`, once in an interval for all workers."""
        keys = (*self._keys[:3], self._released, self._message_keys)
        return WaitingTurns(*await self._commands.script(TURNS_WAITING, keys, self._group, interval_ms, count, idle_ms))

    async def check(self, fields: Collection[bytes], free: Iterable[bytes] = ()) -> Checked:
        """Pass on the turns of messages that no longer exist; see `turns_check.lua`.

        `fields` are those of the rows; `free` are the names of messages that wait and need no turn.
        """
        keys = (*self._keys, self._released)
        reply = await self._commands.script(TURNS_CHECK, keys, *self._arguments, len(fields), *fields, *free)
        gone, found, own = reply
        return Checked(gone, taken(found), [(_is_replayed(at), entry) for at, entry in own])

    def settle(
        self, places: Sequence[Place], retries: str, crashes: str, *, replays: bool
    ) -> tuple[Script, tuple[Argument, ...]]:
        """Return the script and arguments that ack these messages and take over the next ones."""
        keys = (*self._keys, retries, crashes)
        return SETTLE_TURNS, (len(keys), *keys, *self._arguments, 1 + replays, *_names_and_fields(places))

    def dead_letter(
        self, place: Place, retries: str, crashes: str, letter: Sequence[Argument], *, replays: bool, on_dead: str
    ) -> tuple[Script, tuple[Argument, ...]]:
        """Return the script and arguments that write a dead letter, settle its message and take over the next one."""
        keys = (*self._keys, retries, crashes, self._dead)
        name, field = place
        arguments = (*self._arguments, 1 + replays, name, on_dead, field, *letter)
        return DEAD_LETTER_TURN, (len(keys), *keys, *arguments)


def taken(found: Iterable[Any]) -> list[Taken]:
    """Return what a script's reply says was taken over."""
    return [Taken(_is_replayed(at), entry, flat) for at, entry, flat in found]


def _is_replayed(at: int) -> bool:
    """Return whether this number of a key is the replay stream's."""
    return at == 2  # noqa: PLR2004


def _names_and_fields(places: Sequence[Place]) -> list[bytes]:
    """Return the names of all messages, then their fields."""
    return [word for words in zip(*places, strict=True) for word in words]
