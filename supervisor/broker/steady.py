"""Connections that tell of being lost in the same way on every event loop.

What the server or the network ended while nobody looked shows only when something is sent: redis-py still
takes it for connected. asyncio's own loop then reports a lost connection, uvloop's a closed handle, which is
a RuntimeError and would pass for a bug.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import AbstractConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError

if TYPE_CHECKING:
    from collections.abc import Sequence


def is_lost(connection: AbstractConnection) -> bool:
    """It was connected, and its other end is gone."""
    reader, writer = connection._reader, connection._writer
    if reader is None or writer is None:
        return False
    return reader.at_eof() or reader.exception() is not None or writer.transport.is_closing()


async def open_anew(connection: AbstractConnection, *, demoted: bool = False) -> None:
    """Connect anybody's connection, if need be; one that was lost is made anew.

    `demoted`: it has said READONLY. After a failover another server answers at the same name, which nobody
    learns who stays connected to the old one. Raises redis-py's errors and OSError.
    """
    if demoted or is_lost(connection):
        await connection.disconnect(nowait=True)
    await connection.connect()


async def send(connection: AbstractConnection, packed: Sequence[bytes]) -> None:
    """Send packed commands. Raises redis-py's errors and OSError; how much was sent is then unknown."""
    try:
        await connection.send_packed_command(packed, check_health=False)
    except RuntimeError as error:
        raise _lost(error) from None


class Steady(AbstractConnection):
    """All connections of our own are; put it before redis-py's class."""

    async def connect(self) -> None:
        """Connect, unless connected; what was lost is made anew. Raises redis-py's errors and OSError."""
        if is_lost(self):
            await self.disconnect(nowait=True)
        await super().connect()  # type: ignore[no-untyped-call]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """As redis-py's."""
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise _lost(error) from None


class SteadyUnix(Steady, UnixDomainSocketConnection):
    """Through a unix socket."""


def _lost(error: RuntimeError) -> RedisConnectionError:
    return RedisConnectionError(f"Connection lost: {error}")
