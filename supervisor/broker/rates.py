"""Reserves the time at which messages may start, in Redis (`reserve_rate.lua`), and takes over those that are due."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from supervisor.broker.scripts import CHANGE_RATE, RESERVE_RATE, TAKE_DUE
from supervisor.broker.turns import Taken, taken
from supervisor.keys import before_change, behind_key, due_key, interval_key, rates_key, replay_key, retries_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.broker.command_connection import Argument, CommandConnection
    from supervisor.core.rate import Rate


#: Times that one call of the script changes when the rate was changed: one or two ms of the server.
_CHANGED = 1_000
#: Messages that one call of the script takes: Lua's unpack takes about 8,000 arguments.
_RESERVED_MAX = 2_000


class Request(NamedTuple):
    """A message that wants to start."""

    #: Its id; of a copy in the replay stream `<id of the message>@<id of the copy>`.
    name: bytes
    key: bytes | None
    cost: float


class DueMessages(NamedTuple):
    """The messages whose time has come, and which the consumer has taken over."""

    #: Each with its retry record, empty for one that never failed.
    taken: list[tuple[Taken, bytes]]
    #: ms until the next one is due; None when none waits.
    next_ms: int | None
    waiting: int
    #: Whether a change of the rate is under way.
    changing: bool


class Rates:
    """The rates of one group, as one consumer sees them. All methods raise redis-py's errors and OSError."""

    def __init__(self, commands: CommandConnection, stream: str, group: str, consumer: str, rate: Rate) -> None:
        self._commands = commands
        self._group = group
        self._consumer = consumer
        self._rate = rate
        copies = replay_key(stream, group)
        self._behind = behind_key(stream, group)
        self._keys = (stream, copies, due_key(stream, group), self._behind)
        self._retries = (retries_key(stream, group), retries_key(copies, group))
        self._interval = interval_key(stream, group)
        self._rates = rates_key(stream, group)

    async def begin(self) -> None:
        """Let messages that wait, with times that another rate reserved, start by this rate."""
        while await self.change(_CHANGED):
            pass

    async def end_change(self) -> None:
        """Finish a change of the rate that a worker has begun and may have left, whatever the new rate was."""
        while await self.change(_CHANGED, ""):
            pass

    async def change(self, count: int, interval_us: str | None = None) -> int:
        """Apply a rate, else this one, to `count` times that another one reserved; return 0 when all have it."""
        interval_us = repr(self._rate.interval_us) if interval_us is None else interval_us
        due = self._keys[2]
        keys = (due, self._rates, before_change(due), before_change(self._rates), self._interval, self._behind)
        left: int = await self._commands.script(CHANGE_RATE, keys, interval_us, count)
        return left

    async def reserve(
        self, requests: Sequence[Request], *, replays: bool, at_once: bool = False
    ) -> tuple[list[bool], int | None]:
        """Return for each message whether it starts now, and the ms until the first of all that wait is due.

        `at_once`: all start now, and the following ones wait for it.
        """
        if len(requests) > _RESERVED_MAX:
            first, _ = await self.reserve(requests[:_RESERVED_MAX], replays=replays, at_once=at_once)
            rest, next_ms = await self.reserve(requests[_RESERVED_MAX:], replays=replays, at_once=at_once)
            return first + rest, next_ms
        arguments: list[Argument] = []
        for request in requests:
            arguments += [request.name, b"" if request.key is None else b":" + request.key, request.cost]
        keys = (*self._keys, self._rates, before_change(self._rates), self._interval)
        head = (self._group, self._rate.interval_us, self._rate.tolerance_us, 1 + replays, int(at_once))
        flags, next_ms = await self._commands.script(RESERVE_RATE, keys, *head, *arguments)
        return [flag == ord("1") for flag in flags], _ms(next_ms)

    async def take_due(self, count: int) -> DueMessages:
        """Take over at most `count` messages that are due; none where it is 0 or less."""
        before = (before_change(self._keys[2]), before_change(self._rates))
        keys = (*self._keys, *self._retries, self._rates, *before)
        arguments = (self._group, self._consumer, max(0, count))
        found, next_ms, waiting, changing = await self._commands.script(TAKE_DUE, keys, *arguments)
        records = [record for *_, record in found]
        due = zip(taken(one[:3] for one in found), records, strict=True)
        return DueMessages(list(due), _ms(next_ms), waiting, bool(changing))


def _ms(number: int) -> int | None:
    return None if number < 0 else number
