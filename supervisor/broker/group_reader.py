"""Reads a consumer group over one of redis-py's connections, driven by hand.

Sending a read and receiving its reply are apart, so that the next reads are on the wire while a batch is handled.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ResponseError

from supervisor.broker import routed_connection
from supervisor.broker.command_connection import (
    REPLY_SLACK_S,
    Argument,
    CommandConnection,
    Server,
    pack_command,
    server_of,
)
from supervisor.broker.connect import connection
from supervisor.broker.deadline import Deadline
from supervisor.broker.entry_parser import EntryParser, Replies, replies_of

#: The whole handshake may take this many connect timeouts.
_HANDSHAKE_TIMEOUTS = 2

#: How long a read waits at a server where CLIENT UNBLOCK can't end it.
_BLOCK_MS_MAX = 1_000

#: A stream's entries as Redis sends them: `[id, [name, value, ...]]`, or `[id, None]` when the entry was deleted.
Entries = Sequence[Sequence[Any]]
#: What a read brought: streams with their entries.
Reply = list[tuple[bytes, Entries]]


class GroupReader:
    """One connection that reads streams of one group, as one consumer.

    Never cancel `receive`: what was just delivered would be stranded. End a blocked read with CLIENT UNBLOCK.
    """

    def __init__(
        self, url: str, streams: Sequence[str], group: str, consumer: str, *, connect_timeout_s: float = 5.0
    ) -> None:
        """Read `streams`, which share a hash slot in a cluster; each has a group called `group`."""
        self._name = f"supervisor-{consumer}"
        self._connection = connection(
            url, key=streams[0], connect_timeout_s=connect_timeout_s, name=self._name, parser=EntryParser
        )
        #: None where the connection is not one of redis-py's with hiredis.
        self._replies: Replies | None = None
        self._head = ("XREADGROUP", "GROUP", group, consumer, "COUNT")
        self.select(streams)
        self._reply_timeout_s = REPLY_SLACK_S
        self._deadline = Deadline()
        self._handshake_s = _HANDSHAKE_TIMEOUTS * connect_timeout_s
        #: The server's number for this connection; 0 when an ACL hides it.
        self._client_id = 0
        #: CLIENT UNBLOCK may end its reads.
        self._can_unblock = False
        #: The server that has given it.
        self._server: Server = None
        #: Connections before this one that a server may still have: the server, and its number for them.
        self._replaced: set[tuple[Server, int]] = set()
        #: How many reads are on the wire whose replies were not received.
        self.outstanding = 0
        #: The read on the wire may wait at the server. It is the only one then: CLIENT UNBLOCK ends just one.
        self.may_block = False
        #: When something was sent last, or a reply came to a read that waited at the server.
        self._used_s = time.monotonic()
        #: When the reply that is sent or received must have come, by `time.monotonic`.
        self.due_s = math.inf

    async def connect(self) -> None:
        """Connect and end this consumer's previous connections at the server.

        A server that has not noticed a lost connection would still deliver entries to its blocked read. Raises
        redis-py's errors, OSError and TimeoutError.
        """
        await self.close()
        async with asyncio.timeout(self._handshake_s):
            await self._connection.connect()
            if self._client_id:
                self._replaced.add((self._server, self._client_id))
            self._server, self._client_id = server_of(self._connection), 0
            self._can_unblock = False
            with contextlib.suppress(ResponseError):  # forbidden by an ACL
                self._client_id = int(await self._ask("CLIENT", "ID"))
                await self._ask("CLIENT", "UNBLOCK", self._client_id)
                self._can_unblock = True
            with contextlib.suppress(ResponseError):  # a later scan finds what went astray
                for server, client_id in self._replaced:
                    if server == self._server and client_id != self._client_id:
                        await self._kill(client_id)
            self._replaced.clear()
        self._replies = replies_of(self._connection, at_once=True)
        self._used_s = time.monotonic()

    def select(self, streams: Sequence[str]) -> None:
        """Read new entries of these streams."""
        self._new_entries = ("STREAMS", *streams, *(">" for _ in streams))
        self._packed: dict[tuple[int, int | None], bytes] = {}

    async def send(self, count: int, block_ms: int | None, *, reads: int = 1) -> None:
        """Ask for up to `count` new entries of each stream; wait for some up to `block_ms` (None: do not wait).

        Reads that do not wait may be several at a time, each answered on its own, and behind others of their kind.
        """
        if block_ms is not None and not self._can_unblock:
            block_ms = min(block_ms, _BLOCK_MS_MAX)
        packed = self._packed.get((count, block_ms))
        if packed is None:
            block = () if block_ms is None else ("BLOCK", block_ms)
            packed = self._packed[count, block_ms] = pack_command((*self._head, count, *block, *self._new_entries))
        self.may_block = block_ms is not None
        await self._send(packed * reads, (block_ms or 0) / 1000 + REPLY_SLACK_S, reads)

    async def send_pending(self, stream: str, count: int, after: bytes, slack_s: float) -> None:
        """Ask for up to `count` of the consumer's own pending entries of `stream` with ids above `after`."""
        await self._send(pack_command((*self._head, count, "STREAMS", stream, after)), slack_s)

    @property
    def is_stale(self) -> bool:
        """Whether to connect again: the connection was idle so long that a load balancer may have dropped it.

        Replies that have come by then can still be received.
        """
        return time.monotonic() - self._used_s > routed_connection.IDLE_MAX_S

    async def receive(self) -> Reply:
        """Return (stream, entries) of the first read on the wire; streams without entries are left out.

        Raises redis-py's errors, OSError and TimeoutError; what was delivered then stays pending.
        """
        waits = self.may_block and not self.is_stale  # else the reply may have come before the connection was idle
        if self.due_s == math.inf:
            self.due_s = time.monotonic() + self._reply_timeout_s
        # redis-py's own timeout answers None and leaves the reply on the wire, to be taken for the next one's.
        with self._deadline.after(self._reply_timeout_s):
            if self._replies is not None:
                reply = await self._replies.next()
            else:
                reply = await self._connection.read_response(disable_decoding=True)
        if waits:
            self._used_s = time.monotonic()
        self.outstanding -= 1
        self.may_block = False
        self.due_s = math.inf  # nobody waits for the reply of another read now
        return reply or []

    async def unblock(self, commands: CommandConnection) -> None:
        """End a read that waits at the server, by way of another connection. Raises redis-py's errors and OSError."""
        # Clients are numbered by each server, and `commands` may be connected to the one before a failover.
        if commands.server != self._server:
            await commands.reconnect()
        if self._client_id and commands.server == self._server:
            await commands.call("CLIENT", "UNBLOCK", self._client_id)

    async def close(self) -> None:
        """Drop the connection; the entries of reads on the wire stay pending."""
        self.outstanding = 0
        self.may_block = False
        self._replies = None
        await self._connection.disconnect(nowait=True)

    async def _send(self, packed: bytes, reply_timeout_s: float, commands: int = 1) -> None:
        self._reply_timeout_s = reply_timeout_s
        self.outstanding += commands
        self._used_s = time.monotonic()
        self.due_s = self._used_s + reply_timeout_s
        if self._replies is not None:
            self._replies.write(packed)
        else:
            await self._connection.send_packed_command(packed, check_health=False)

    async def _kill(self, client_id: int) -> None:
        # The name is compared because a server that restarted counts its client ids from 1 again.
        if f"name={self._name} ".encode() in await self._ask("CLIENT", "LIST", "ID", client_id):
            await self._ask("CLIENT", "KILL", "ID", client_id)

    async def _ask(self, *arguments: Argument) -> Any:
        await self._connection.send_packed_command(pack_command(arguments), check_health=False)
        return await self._connection.read_response(disable_decoding=True)
