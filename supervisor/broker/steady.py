"""Connecting and sending, so that a lost connection looks the same on every event loop.

What the server or the network ended while nobody looked shows only when something is sent: redis-py still
takes it for connected. asyncio's own loop then reports a lost connection, uvloop's a closed handle, which is
a RuntimeError and would pass for a bug.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio.connection import AbstractConnection


async def open_anew(connection: AbstractConnection, *, demoted: bool = False) -> None:
    """Connect, if need be; what was lost while it was idle is made anew. Raises redis-py's errors and OSError.

    `demoted`: it has said READONLY. After a failover another server answers at the same name, which nobody
    learns who stays connected to the old one.
    """
    reader, writer = connection._reader, connection._writer
    if reader is not None and writer is not None:
        lost = reader.at_eof() or reader.exception() is not None or writer.transport.is_closing()
        if lost or demoted:
            await connection.disconnect(nowait=True)
    await connection.connect()


async def send(connection: AbstractConnection, packed: bytes | Sequence[bytes]) -> None:
    """Send packed commands. Raises redis-py's errors and OSError; how much was sent is then unknown."""
    try:
        await connection.send_packed_command(packed, check_health=False)
    except RuntimeError as error:
        raise RedisConnectionError(f"Connection lost: {error}") from None
