"""Redis commands over one of redis-py's connections, driven by hand.

`Wire` sends a pipeline and reads its replies, one caller at a time. It holds no retry logic: a lost
connection is an exception, and the caller knows what may be sent again. The connection is made at the
first use and again at the first use after it was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING, Any

import hiredis
from redis.exceptions import NoScriptError, ResponseError

from supervisor.broker.connect import connection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio.connection import AbstractConnection

    from supervisor.broker.scripts import Script

Argument = bytes | str | int | float
#: Host and port of the server that a connection is to; a unix socket has neither.
Server = tuple[str | None, int | None] | None


def pack_command(arguments: tuple[Argument, ...]) -> bytes:
    """A command as the protocol wants it."""
    packed: bytes = hiredis.pack_command(arguments)  # type: ignore[arg-type]  # its stub says a tuple of one
    return packed


def server_of(link: AbstractConnection) -> Server:
    """None when it is not connected."""
    return (getattr(link, "host", None), getattr(link, "port", None)) if link.is_connected else None


#: How much longer than the server's own BLOCK a reply may take before the link counts as dead.
REPLY_SLACK_S = 3.0
#: A pipeline may take as much longer as its bytes do over a link of this speed.
SLOW_BYTES_PER_S = 256 * 1024
#: All that is said before the first read may take so many times as long as connecting may.
CONNECT_TIMES = 2


class Wire:
    """One connection for commands that do not block."""

    def __init__(
        self, url: str, *, key: str = "", name: str = "", connect_timeout_s: float = 5.0, limit_s: float = 5.0
    ) -> None:
        """`key`: in a cluster, one of those it is for. `limit_s`: for a command or a small pipeline."""
        self._connection = connection(url, key=key, connect_timeout_s=connect_timeout_s, name=name)
        self._limit_s = limit_s
        self._lock = asyncio.Lock()

    async def call(self, *arguments: Argument) -> Any:
        """One command's reply. Raises redis-py's errors, ResponseError included."""
        (reply,) = await self.pipeline([pack_command(arguments)])
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def script(self, script: Script, keys: Sequence[str], *arguments: Argument) -> Any:
        """A script's reply; its text is sent only when the server does not know it yet."""
        tail = (len(keys), *keys, *arguments)
        try:
            return await self.call("EVALSHA", script.sha, *tail)
        except NoScriptError:
            return await self.call("EVAL", script.text, *tail)

    async def pipeline(self, packed: Sequence[bytes]) -> list[Any]:
        """The replies of packed commands in order, errors of the server among them as exceptions.

        Raises ConnectionError or TimeoutError when the link fails; which commands ran is then unknown.
        """
        async with self._lock:
            try:
                # One limit for all of it: a server that does not even take what is sent must not hold us either.
                async with asyncio.timeout(self._limit_s + sum(map(len, packed)) / SLOW_BYTES_PER_S):
                    await self._connection.connect()
                    await self._connection.send_packed_command(packed, check_health=False)
                    return [await self._reply() for _ in packed]
            except BaseException:
                await self._connection.disconnect(nowait=True)
                raise

    async def unblock(self, reader: BlockingReader) -> None:
        """End the blocked read of `reader` now, if it may be done. Raises redis-py's errors and OSError.

        Clients are numbered by each server: the number means nothing to another one, and of the two connections
        this may be the one that does not know yet where the stream is now.
        """
        if server_of(self._connection) != reader.server:
            async with self._lock:
                await self._connection.disconnect(nowait=True)
            await self.call("PING")
        if reader.client_id and server_of(self._connection) == reader.server:
            await self.call("CLIENT", "UNBLOCK", reader.client_id)

    async def close(self) -> None:
        """Drop the connection."""
        await self._connection.disconnect(nowait=True)

    async def _reply(self) -> Any:
        try:
            return await self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return error


class BlockingReader:
    """One connection for blocking reads of a group, as one consumer.

    `send` and `receive` are apart, so that the next read is on the wire while a batch is handled.
    Never cancel `receive`: what was just delivered would be stranded. End it with CLIENT UNBLOCK.
    """

    def __init__(self, url: str, stream: str, group: str, consumer: str, *, connect_timeout_s: float = 5.0):
        self._name = f"supervisor-{consumer}"
        self._connection = connection(url, key=stream, connect_timeout_s=connect_timeout_s, name=self._name)
        self._head = ("XREADGROUP", "GROUP", group, consumer, "COUNT")
        self._stream = stream
        self._timeout_s = REPLY_SLACK_S
        self._connect_s = CONNECT_TIMES * connect_timeout_s
        #: The server's number for this connection; 0: it is not allowed to know.
        self.client_id = 0
        #: Where that server is.
        self.server: Server = None
        #: A read is on the wire and its reply not yet taken.
        self.outstanding = False
        #: When that read must have been answered or given up, by `time.monotonic`.
        self.due_s = math.inf

    async def connect(self) -> None:
        """Connect and learn the id by which the server knows this connection; the one before is ended there too.

        A server that has not noticed a lost connection would still hand entries to its blocked read.
        """
        await self.close()
        async with asyncio.timeout(self._connect_s):
            await self._connection.connect()
            before = self.server, self.client_id
            self.server, self.client_id = server_of(self._connection), 0
            with contextlib.suppress(ResponseError):  # forbidden by an ACL: a later look finds what went astray
                self.client_id = int(await self._ask("CLIENT", "ID"))
                if before[1] and before[0] == self.server:
                    await self._end(before[1])

    async def _end(self, before: int) -> None:
        # The name is looked at: a server that restarted counts its ids anew.
        if f"name={self._name} ".encode() in await self._ask("CLIENT", "LIST", "ID", before):
            await self._ask("CLIENT", "KILL", "ID", before)

    async def send(
        self, count: int, *, block_ms: int | None = None, start: str = ">", slack_s: float = REPLY_SLACK_S
    ) -> None:
        """Put a read on the wire. `start`: `>` for new entries, an id for one's own pending ones after it."""
        block = () if block_ms is None else ("BLOCK", block_ms)
        command = (*self._head, count, *block, "STREAMS", self._stream, start)
        self._timeout_s = (block_ms or 0) / 1000 + slack_s
        self.outstanding = True
        self.due_s = time.monotonic() + self._timeout_s
        await self._connection.send_packed_command(pack_command(command), check_health=False)

    async def receive(self) -> list[list[Any]]:
        """The entries of the read on the wire, `[id, [name, value, ...]]` each; [] when there were none.

        An entry that was deleted while pending comes as `[id, None]`.
        """
        # Not redis-py's own timeout, which answers None and leaves the reply to be taken for the next one's.
        async with asyncio.timeout(self._timeout_s):
            reply = await self._connection.read_response(disable_decoding=True)
        self.outstanding = False
        return reply[0][1] if reply else []

    async def _ask(self, *arguments: Argument) -> Any:
        await self._connection.send_packed_command(pack_command(arguments), check_health=False)
        return await self._connection.read_response(disable_decoding=True)

    async def close(self) -> None:
        """Drop the connection; a read on the wire is forgotten, its entries stay pending."""
        self.outstanding = False
        await self._connection.disconnect(nowait=True)
