"""Notices that any program has changed one of some keys, without asking: client-side caching's broadcasts.

The server then sends the names of changed keys with these prefixes over the connection that asked for it. Redis 6 and
Valkey have it; some proxies and hosted services do not, and an ACL may forbid it.
"""

from collections.abc import Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.command_connection import REPLY_SLACK_S, pack_command
from supervisor.broker.connect import connection

_CHANNEL = "__redis__:invalidate"
#: A connection that was silent for so long is tested.
QUIET_S = 10.0


class KeyWatch:
    """One connection that hears of changes of keys with some prefixes; used by one task."""

    def __init__(self, url: str, prefixes: Sequence[str], *, connect_timeout_s: float = 5.0) -> None:
        """No prefix may begin with another one."""
        self._connection = connection(url, connect_timeout_s=connect_timeout_s, name="supervisor-keeper-watch")
        self._prefixes = prefixes

    async def connect(self) -> None:
        """Connect and ask for the changes. Raises redis-py's errors; ResponseError when the server refuses it."""
        await self._connection.connect()
        client_id = await self._ask("CLIENT", "ID")
        words = [word for prefix in self._prefixes for word in ("PREFIX", prefix)]
        # The redirection to the connection itself makes the broadcasts ordinary messages of RESP2.
        await self._ask("CLIENT", "TRACKING", "ON", "REDIRECT", str(client_id), "BCAST", *words)
        await self._ask("SUBSCRIBE", _CHANNEL)

    async def changed(self) -> list[bytes] | None:
        """Wait and return the keys that were changed, None for all; an empty list when nothing was for a while.

        Raises redis-py's errors when the connection is lost.
        """
        reply = await self._read(QUIET_S)
        if reply is None:
            await self._send("PING")
            reply = await self._read(REPLY_SLACK_S)
            if reply is None:
                raise RedisConnectionError("no answer")
        if reply[0] != b"message":
            return []
        keys: list[bytes] | None = reply[2]
        return keys

    async def close(self) -> None:
        """Drop the connection."""
        await self._connection.disconnect(nowait=True)

    async def _ask(self, *words: str) -> Any:
        await self._send(*words)
        reply = await self._read(REPLY_SLACK_S)
        if reply is None:
            raise RedisConnectionError("no answer")
        return reply

    async def _read(self, limit_s: float) -> Any:
        """Return what comes next; None when nothing does."""
        return await self._connection.read_response(disable_decoding=True, timeout=limit_s)

    async def _send(self, *words: str) -> None:
        await self._connection.send_packed_command(pack_command(words), check_health=False)
