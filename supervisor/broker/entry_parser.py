"""redis-py's parser with the compiled reader before hiredis's, where it was built."""

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor import compiled
from supervisor.broker.direct_future import DirectFuture


class EntryParser(DefaultParser):  # type: ignore[misc, valid-type]  # redis-py chooses its base at run time
    """Returns what redis-py's own parser does, with the entries of XREADGROUP not yet taken apart."""

    #: A reply that `Replies` has taken from the reader and that redis-py must handle: an error, for example.
    left: Any = None

    def on_connect(self, connection: Any) -> None:
        """Take a connection; as in redis-py, a new reader begins with it."""
        super().on_connect(connection)
        self.left = None
        # Any other reader, of a redis-py to come, is left as it is.
        reader: Any = getattr(self, "_reader", None)
        if compiled.entries is not None and isinstance(reader, hiredis.Reader):
            self._reader = compiled.entries.Reader(reader)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Return a reply as redis-py does."""
        if self.left is None:
            return await super().read_response(*args, **options)
        left, self.left = self.left, None
        if isinstance(left, RedisConnectionError):
            raise left
        return left


class Replies(asyncio.Protocol):
    """Gives the replies of one connection to a task, which goes on as soon as one has arrived.

    Bytes go from the socket to the parser's reader without asyncio's streams, and entries to the task without redis-py.
    redis-py handles errors and the end of the connection. An idle worker runs a third less code for a message.
    """

    def __init__(self, connection: AbstractConnection, parser: EntryParser) -> None:
        """Take over a connection after its handshake, when nothing is on the wire."""
        self._connection = connection
        self._parser = parser
        self._feed: Callable[[bytes], object] = parser._reader.feed
        self._gets: Callable[[bool], Any] = parser._reader.gets
        #: What the reader returns when a reply is not complete.
        self._incomplete = self._gets(False)
        self._waiter: DirectFuture | None = None
        self._ended = False
        transport: Any = connection._writer and connection._writer.transport
        self._streams: Any = transport.get_protocol()
        transport.set_protocol(self)

    async def next(self) -> Any:
        """Return the next reply. Raises redis-py's errors and OSError."""
        while (reply := self._gets(False)) is self._incomplete and not self._ended:
            self._waiter = DirectFuture()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if reply is None or type(reply) is list:
            return reply
        self._parser.left = None if reply is self._incomplete else reply
        return await self._connection.read_response(disable_decoding=True)

    def data_received(self, data: bytes) -> None:
        """Give bytes to the reader."""
        self._feed(data)
        if self._waiter is not None:
            self._waiter.wake()

    def eof_received(self) -> bool | None:
        """Note that no more bytes will come."""
        keeps_open: bool | None = self._streams.eof_received()
        self._end()
        return keeps_open

    def connection_lost(self, error: Exception | None) -> None:
        """Note that the connection is closed."""
        self._streams.connection_lost(error)
        self._end()

    def pause_writing(self) -> None:
        """Have `drain` wait."""
        self._streams.pause_writing()

    def resume_writing(self) -> None:
        """End the wait of `drain`."""
        self._streams.resume_writing()

    def _end(self) -> None:
        self._ended = True
        if self._waiter is not None:
            self._waiter.wake()
