"""redis-py's connections, which find their server anew at each connect and leave one that turned out wrong.

`connect` is called before each use, by redis-py's pools too, so that is where both happen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import AskError, MovedError, ReadOnlyError, ResponseError

from supervisor.broker.steady import Steady, is_lost
from supervisor.broker.topology import Address

if TYPE_CHECKING:
    from supervisor.broker.topology import Route

#: A server that answers so is not, or no more, the one for the key: MOVED is an AskError too.
_ELSEWHERE = (AskError, ReadOnlyError)


class Routed(Steady, Connection):
    """A connection to the server for one key."""

    def __init__(self, *, route: Route, key: str = "", **options: Any) -> None:
        """`route` knows where the server for `key` is."""
        super().__init__(**options)
        self._route = route
        self._key = key
        #: Not to be used again.
        self._misplaced = False
        #: Where the server is, as the last one said.
        self._told: Address | None = None

    async def connect(self) -> None:
        """Connect to where the server is now, unless connected. Raises redis-py's errors and OSError."""
        if self._misplaced or is_lost(self):
            await self.disconnect(nowait=True)
        if self.is_connected:
            return
        self._misplaced = False
        told, self._told = self._told, None
        self.host, self.port = await self._route.find(self._key, told)
        await super().connect()
        self._route.keep(self)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """As redis-py's."""
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            self._misplaced |= isinstance(error, _ELSEWHERE)
            if isinstance(error, MovedError):
                self._told = Address(error.host or self.host, error.port)
            raise

    def leave_unless_at(self, address: Address) -> None:
        """Hang up a connection to any other server: whoever waits for an answer sees a connection that was lost."""
        if self._writer is not None and (self.host, self.port) != address:
            self._misplaced = True
            self._writer.transport.abort()


class RoutedTls(Routed, SSLConnection):
    """The same with TLS."""
