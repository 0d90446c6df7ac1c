"""Marks the message that runs in isolation: in shared memory, and in Redis in case shared memory is lost too.

Shared memory names the message that was running when a worker died. When the whole pool dies (a container that is out
of memory is killed as one, an app has no arbiter), only the mark in Redis is left, which was written before the handler
was called. It costs a round trip, for suspects only.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from supervisor.core.ids import parse_id
from supervisor.shared_state import MarksOwner

if TYPE_CHECKING:
    from supervisor.broker.command_connection import Argument, CommandConnection
    from supervisor.worker.settler import Settler
    from supervisor.worker.source import Source


class IsolationMarker:
    """The isolation mark of one consumer of one source."""

    def __init__(self, commands: CommandConnection, settler: Settler, source: Source, consumer: str) -> None:
        self._commands = commands
        self._settler = settler
        self._source = source
        self._consumer = consumer

    @property
    def shared_is_new(self) -> bool:
        """Whether only Redis knows what a predecessor did: no worker has used the marks in shared memory before."""
        return self._source.marks.owner == MarksOwner.NOBODY

    @property
    def is_set(self) -> bool:
        """Whether shared memory names a message."""
        return self._source.marks.isolated() is not None

    async def set(self, entry: bytes) -> None:
        """Mark `entry`, which is about to run with nothing else in hand. Start it before anything is awaited."""
        await self._try("HSET", self._source.isolated, self._consumer, entry)
        self._source.marks.set_isolated(*parse_id(entry))

    def handled(self) -> None:
        """Remove the mark because the handler has ended; the mark in Redis goes with the outcome."""
        self._source.marks.set_isolated(0, 0)
        self._settler.unmark(self._source, self._consumer)

    async def clear(self) -> None:
        """Remove the mark because the worker ends on purpose."""
        self._source.marks.set_isolated(0, 0)
        await self._try("HDEL", self._source.isolated, self._consumer)

    async def take(self) -> None:
        """Remove the mark before its message is charged: no crash is counted twice. Raises redis-py's errors."""
        await self._commands.call("HDEL", self._source.isolated, self._consumer)
        self._source.marks.set_isolated(0, 0)

    async def find(self) -> tuple[int, int] | None:
        """Return the id that ran alone when the predecessor died. Raises redis-py's errors.

        Shared memory that a predecessor used takes precedence: the arbiter saw why that process ended.
        """
        if not self.shared_is_new:
            return self._source.marks.isolated()
        entry = await self._commands.call("HGET", self._source.isolated, self._consumer)
        return parse_id(entry) if entry else None

    async def _try(self, *command: Argument) -> None:
        # Without Redis, the mark in shared memory must do: a fault of Redis must not hold up a message in hand.
        with contextlib.suppress(RedisError, OSError):
            await self._commands.call(*command)
