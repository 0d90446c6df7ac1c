"""Reserves the time at which messages may start, in Redis (`reserve_rate.lua`), and takes over those that are due."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from supervisor.broker.scripts import CHANGE_RATE, RESERVE_RATE, TAKE_DUE
from supervisor.broker.turns import Taken
from supervisor.keys import behind_key, due_key, interval_key, rate_key, replay_key, retries_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.broker.command_connection import Argument, CommandConnection
    from supervisor.core.rate import Rate


#: Keys of the server that are looked at with one command when the rate was changed.
_SCAN_COUNT = 2_000


class Request(NamedTuple):
    """A message that wants to start."""

    #: Its id; of a copy in the replay stream `<id of the message>@<id of the copy>`.
    name: bytes
    key: bytes | None
    cost: float


class Due(NamedTuple):
    """The messages whose time has come, and which the consumer has taken over."""

    #: Each with its retry record, empty for one that never failed.
    taken: list[tuple[Taken, bytes]]
    #: ms until the next one is due; None when none waits.
    next_ms: int | None
    waiting: int


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
        self._prefix = rate_key(stream, group).encode()
        self._interval = interval_key(stream, group)

    async def begin(self) -> None:
        """Have what waits start by this rate, where it was reserved by another one."""
        keys = (self._keys[2], self._interval, self._behind)
        interval_us = repr(self._rate.interval_us)
        now_ms, old = await self._commands.script(CHANGE_RATE, keys, interval_us)
        if not old:
            return
        escaped = re.sub(rb"([*?\[\]^\\-])", rb"\\\1", self._prefix)
        cursor: Any = b"0"
        while True:
            cursor, found = await self._commands.call("SCAN", cursor, "MATCH", escaped + b"*", "COUNT", _SCAN_COUNT)
            rates = [key for key in found if key == self._prefix or key.startswith(self._prefix + b":")]
            if rates:
                await self._commands.script(CHANGE_RATE, (*keys, *rates), interval_us, now_ms, old)
            if cursor == b"0":
                return

    async def reserve(
        self, requests: Sequence[Request], *, replays: bool, at_once: bool = False
    ) -> tuple[list[bool], int | None]:
        """Return for each message whether it starts now, and the ms until the first of all that wait is due.

        `at_once`: all start now, and the following ones wait for it.
        """
        numbers: dict[bytes, int] = {}
        arguments: list[Argument] = []
        for request in requests:
            rate = self._prefix if request.key is None else b"%b:%b" % (self._prefix, request.key)
            number = numbers.setdefault(rate, len(self._keys) + 1 + len(numbers))
            arguments += [request.name, number, request.cost]
        head = (self._group, self._rate.interval_us, self._rate.tolerance_us, 1 + replays, int(at_once))
        flags, next_ms = await self._commands.script(RESERVE_RATE, (*self._keys, *numbers), *head, *arguments)
        return [flag == ord("1") for flag in flags], _ms(next_ms)

    async def take_due(self, count: int) -> Due:
        """Take over at most `count` messages that are due."""
        keys = (*self._keys, *self._retries)
        found, next_ms, waiting = await self._commands.script(TAKE_DUE, keys, self._group, self._consumer, count)
        return Due([_due(*one) for one in found], _ms(next_ms), waiting)


def _ms(number: int) -> int | None:
    return None if number < 0 else number


def _due(at: int, entry: bytes, flat: list[Any], record: bytes) -> tuple[Taken, bytes]:
    return Taken(at == 2, entry, flat), record  # noqa: PLR2004 - the replay stream's number
