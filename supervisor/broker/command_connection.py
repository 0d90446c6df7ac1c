"""Redis commands over one of redis-py's connections, driven by hand.

It never repeats a command: a lost connection is an exception, and the caller knows what may be sent again. The
connection is made at the first use, and again at the first use after it was lost.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import NoScriptError, ResponseError

from supervisor import compiled
from supervisor.broker import routed_connection
from supervisor.broker.connect import connection
from supervisor.broker.deadline import Deadline
from supervisor.broker.entry_parser import Replies, ReplyParser, replies_of
from supervisor.broker.scripts import Script

Argument = bytes | str | int | float
#: Host and port of a server; a unix socket has neither.
Server = tuple[str | None, int | None] | None

_packer: Any = hiredis if compiled.entries is None else compiled.entries
#: Returns a command in Redis's wire format.
pack_command: Callable[[tuple[Argument, ...]], bytes] = _packer.pack_command

#: How much longer than the server's own BLOCK a reply may take before the connection counts as dead.
REPLY_SLACK_S = 3.0
#: A pipeline gets the time that its bytes take over a link of this speed.
_SLOW_BYTES_PER_S = 256 * 1024


def server_of(link: AbstractConnection) -> Server:
    """Return the server that `link` is connected to; None when it is not connected."""
    return (getattr(link, "host", None), getattr(link, "port", None)) if link.is_connected else None


class CommandConnection:
    """One connection for commands that do not block, used by one caller at a time."""

    def __init__(
        self, url: str, *, key: str = "", name: str = "", connect_timeout_s: float = 5.0, limit_s: float = 5.0
    ) -> None:
        """Prepare, in a cluster for the server of `key`; a command or a small pipeline may take `limit_s`."""
        self._connection = connection(url, key=key, connect_timeout_s=connect_timeout_s, name=name, parser=ReplyParser)
        #: None before the first use, after an error, and where the connection is not one of redis-py's with hiredis.
        self._replies: Replies | None = None
        #: A command was refused, perhaps by the wrong server. The next one calls `connect`, which then connects again.
        self._refused = False
        self._limit_s = limit_s
        self._deadline = Deadline()
        self._lock = asyncio.Lock()

    @property
    def server(self) -> Server:
        """The server of the present connection; None when it is not connected."""
        return server_of(self._connection)

    async def call(self, *arguments: Argument) -> Any:
        """Return one command's reply. Raises redis-py's errors, ResponseError included."""
        (reply,) = await self.pipeline([pack_command(arguments)])
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def script(self, script: Script, keys: Sequence[str | bytes], *arguments: Argument) -> Any:
        """Return a script's reply; its text is sent only when the server does not know it yet."""
        tail = (len(keys), *keys, *arguments)
        try:
            return await self.call("EVALSHA", script.sha, *tail)
        except NoScriptError:
            return await self.call("EVAL", script.text, *tail)

    async def pipeline(self, packed: Sequence[bytes]) -> list[Any]:
        """Return the replies of packed commands in order, errors of the server among them as exceptions.

        Raises ConnectionError or TimeoutError when the connection fails; which commands ran is then unknown.
        """
        async with self._lock:
            try:
                # The limit covers sending too: a server that does not read must not hold us either.
                with self._deadline.after(self._limit_s + sum(map(len, packed)) / _SLOW_BYTES_PER_S):
                    await self._send(packed)
                    return [await self._reply() for _ in packed]
            except BaseException:
                await self._disconnect()
                raise

    async def reconnect(self) -> None:
        """Connect again, to where the server is now. Raises redis-py's errors and OSError."""
        async with self._lock:
            await self._disconnect()
        await self.call("PING")

    async def close(self) -> None:
        """Drop the connection."""
        await self._disconnect()

    async def _send(self, packed: Sequence[bytes]) -> None:
        replies = self._replies
        if replies is None or replies.is_lost or self._refused or replies.idle_s > routed_connection.IDLE_MAX_S:
            await self._connect()
        if self._replies is not None:
            self._replies.write(*packed)
        else:
            await self._connection.send_packed_command(packed, check_health=False)

    async def _connect(self) -> None:
        """Connect unless redis-py's connection can be used further."""
        await self._connection.connect()
        self._refused = False
        writer: Any = self._connection._writer
        if self._replies is None or self._replies.transport is not writer.transport:
            # Not at once: what the readers receive in the same turn is settled together.
            self._replies = replies_of(self._connection, at_once=False)

    async def _disconnect(self) -> None:
        self._replies = None
        await self._connection.disconnect(nowait=True)

    async def _reply(self) -> Any:
        try:
            if self._replies is not None:
                return await self._replies.next()
            return await self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            self._refused = True
            return error
