"""Watches keys for changes by any program, without polling: Redis's client-side caching.

The server remembers which keys one connection has read, and tells another connection when one of them changes, once
for each read. This costs the server nothing for other keys (its broadcasts would cost 0.2 µs for each write of any
key). Redis 6 and Valkey have it; some proxies and hosted services do not, and an ACL may forbid it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.command_connection import REPLY_SLACK_S, pack_command
from supervisor.broker.connect import connection

_CHANNEL = "__redis__:invalidate"
#: A connection that was silent for longer is tested.
QUIET_S = 10.0
#: Changes that come within this time are reported together.
_TOGETHER_S = 0.02


class KeyWatch:
    """Two connections over which the server reports changes of some keys; used by one task."""

    def __init__(self, url: str, keys: Sequence[str], *, connect_timeout_s: float = 5.0) -> None:
        self._reader, self._listener = (
            connection(url, connect_timeout_s=connect_timeout_s, name="supervisor-keeper-watch") for _ in range(2)
        )
        self._keys = keys

    async def connect(self) -> None:
        """Connect and ask for the changes. Raises redis-py's errors; ResponseError when the server refuses it."""
        await self._listener.connect()
        await self._reader.connect()
        listener_id = await _ask(self._listener, "CLIENT", "ID")
        await _ask(self._listener, "SUBSCRIBE", _CHANNEL)
        await _ask(self._reader, "CLIENT", "TRACKING", "ON", "REDIRECT", str(listener_id))
        await self._read(self._keys)

    async def changed(self) -> list[bytes] | None:
        """Wait for changes and return their keys; None means all keys, an empty list that nothing changed for a while.

        Changes that come after it has returned are reported by the next call. Raises redis-py's errors when a
        connection is lost.
        """
        reply = await _receive(self._listener, QUIET_S)
        if reply is None:
            await self._read(self._keys)  # the reader might be gone, and with it what the server remembers
            reply = await _ask(self._listener, "PING")
        if reply[0] != b"message":
            return []
        await asyncio.sleep(_TOGETHER_S)
        keys: list[bytes] | None = reply[2]
        await self._read(self._keys if keys is None else keys)
        return keys

    async def close(self) -> None:
        """Drop the connections."""
        await self._reader.disconnect(nowait=True)
        await self._listener.disconnect(nowait=True)

    async def _read(self, keys: Sequence[str | bytes]) -> None:
        """Have the server report the next change of these keys."""
        await _ask(self._reader, "EXISTS", *keys)


async def _ask(asked: AbstractConnection, *words: str | bytes) -> Any:
    await asked.send_packed_command(pack_command(words), check_health=False)
    reply = await _receive(asked, REPLY_SLACK_S)
    if reply is None:
        raise RedisConnectionError("no answer")
    return reply


async def _receive(asked: AbstractConnection, limit_s: float) -> Any:
    """Return the next reply; None after the time limit."""
    return await asked.read_response(disable_decoding=True, timeout=limit_s)
