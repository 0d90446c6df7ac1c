"""redis-py's connections, which look up their server at each connect and report a lost connection uniformly.

1. What the server or the network ended in the meantime shows only when something is sent: redis-py still
   takes the connection for open. asyncio's loop then reports a lost connection, uvloop's a closed handle,
   which is a RuntimeError and would pass for a bug. Both become redis-py's ConnectionError here.
2. `connect` is called before each use, by redis-py's pools too, so that is where a lost or misplaced
   connection is replaced. So is one that was idle for long: load balancers forget such connections, and what is then
   sent vanishes without an error.
3. redis-py sends with `asyncio.wait_for`, which before Python 3.12 drops a cancellation that comes as it ends. Here a
   command that was cancelled is cancelled.
4. The connection's name is for people who read CLIENT LIST. A server that forbids CLIENT is used without it.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from time import monotonic
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import AskError, MovedError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.routes import Address, Route
from supervisor.unix_path import socket_path

#: A connection that was idle for longer is replaced. Load balancers forget idle connections after minutes.
IDLE_MAX_S = 30.0
#: Probes of an idle TCP connection begin after 20 s, so a load balancer does not forget it, and a dead peer is noticed.
_KEEPALIVE = (("TCP_KEEPIDLE", 20), ("TCP_KEEPALIVE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
#: Answers of a server that does not, or no longer, serve the key. AskError is the base of MovedError.
_WRONG_SERVER = (AskError, ReadOnlyError)


def keepalive_options() -> dict[int, int]:
    """Return the socket options of TCP keepalive that this system has."""
    return {getattr(socket, name): value for name, value in _KEEPALIVE if hasattr(socket, name)}


def is_lost(connection: AbstractConnection) -> bool:
    """Return whether it was connected and the other end is gone."""
    reader, writer = connection._reader, connection._writer
    if reader is None or writer is None:
        return False
    return reader.at_eof() or reader.exception() is not None or writer.transport.is_closing()


async def close(connection: AbstractConnection, *, nowait: bool = False) -> None:
    """Disconnect any of redis-py's connections; its socket is closed also if that fails or is cancelled.

    With `nowait` it waits neither for the end of TLS nor until all bytes are sent. Raises redis-py's errors.
    """
    with _socket_closed(connection):
        await connection.disconnect(nowait=nowait)


@contextlib.contextmanager
def _socket_closed(connection: AbstractConnection) -> Iterator[None]:
    """Close the socket when the block is left. redis-py leaves it open while it has unsent bytes, or TLS has no end."""
    writer = connection._writer
    try:
        yield
    finally:
        if writer is not None:
            writer.transport.abort()


def lost(error: RuntimeError) -> RedisConnectionError:
    """Return what to raise instead of uvloop's error."""
    return RedisConnectionError(f"Connection lost: {error}")


class LostConnectionMixin(AbstractConnection):
    """Replaces a lost connection at `connect` and reports a loss as ConnectionError; goes before redis-py's class."""

    def __init__(self, *, client_name: str | None = None, **options: Any) -> None:
        """Prepare as redis-py does; CLIENT LIST shows `client_name` where the server allows CLIENT SETNAME."""
        super().__init__(**options)
        self._shown_name = client_name
        #: When something was sent last, by `time.monotonic`.
        self.sent_s = monotonic()

    @property
    def idle_s(self) -> float:
        """How long nothing was sent."""
        return monotonic() - self.sent_s

    @property
    def is_stale(self) -> bool:
        """Whether a connection that was made must not be used again: it is lost, or was idle for too long."""
        return is_lost(self) or (self.is_connected and self.idle_s > IDLE_MAX_S)

    async def connect(self) -> None:
        """Connect unless connected; replace a stale connection. Raises redis-py's errors and OSError."""
        if self.is_stale:
            await self.disconnect(nowait=True)
        if self.is_connected:
            return
        await super().connect()  # type: ignore[no-untyped-call]
        self.sent_s = monotonic()
        if self._shown_name:
            await self._show_name(self._shown_name)

    async def disconnect(self, nowait: bool = False, *args: Any, **options: Any) -> None:
        """Disconnect as redis-py does, and close the socket in any case, as `close` does."""
        with _socket_closed(self):
            await super().disconnect(nowait, *args, **options)

    async def _show_name(self, name: str) -> None:
        # Not by redis-py, whose connection fails when CLIENT is forbidden or renamed, as at some hosted services.
        try:
            await self.send_command("CLIENT", "SETNAME", name, check_health=False)
            with contextlib.suppress(ResponseError):
                await self.read_response()
        except BaseException:
            await self.disconnect(nowait=True)
            raise

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send as redis-py does; raise ConnectionError for uvloop's RuntimeError, and CancelledError when cancelled."""
        self.sent_s = monotonic()
        task = asyncio.current_task() if self.socket_timeout else None  # without it, there is no `wait_for`
        cancelling = task.cancelling() if task is not None else 0
        try:
            if not self.is_connected:  # redis-py's cluster client does not call `connect`
                await self.connect()
            await super().send_packed_command(command, check_health)
        except (RedisError, OSError, RuntimeError) as error:
            if task is not None and task.cancelling() > cancelling:
                raise asyncio.CancelledError from error
            if isinstance(error, RuntimeError):
                raise lost(error) from None
            raise
        if task is not None and task.cancelling() > cancelling:
            await self.disconnect(nowait=True)  # its reply would be taken for the next one's
            raise asyncio.CancelledError


class UnixConnection(LostConnectionMixin, UnixDomainSocketConnection):
    """A connection through a unix socket, however long its path."""

    async def _connect(self) -> None:
        path = self.path
        with socket_path(path) as short:
            self.path = short
            try:
                await super()._connect()  # type: ignore[no-untyped-call]
            finally:
                self.path = path


class TcpConnection(LostConnectionMixin, Connection):
    """A connection to a given host and port."""


class TlsConnection(LostConnectionMixin, SSLConnection):
    """The same with TLS."""


class RoutedConnection(LostConnectionMixin, Connection):
    """A connection to the server of one key."""

    def __init__(self, *, route: Route, key: str = "", **options: Any) -> None:
        """Prepare a connection to the server of `key`, which `route` finds."""
        super().__init__(**options)
        self._route = route
        self._key = key
        #: The server is the wrong one: do not use the connection again.
        self._misplaced = False
        #: Where the right server is, as a MOVED reply said.
        self._moved_to: Address | None = None

    async def connect(self) -> None:
        """Connect to the key's present server unless connected. Raises redis-py's errors and OSError."""
        if self._misplaced or self.is_stale:
            await self.disconnect(nowait=True)
        if self.is_connected:
            return
        self._misplaced = False
        moved_to, self._moved_to = self._moved_to, None
        self.host, self.port = await self._route.find(self._key, moved_to)
        await super().connect()
        self._route.watch(self)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read as redis-py does; note replies that say that this is the wrong server."""
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            self._misplaced |= isinstance(error, _WRONG_SERVER)
            if isinstance(error, MovedError):
                self._moved_to = Address(error.host or self.host, error.port)
            raise

    def leave_unless_at(self, address: Address) -> None:
        """Drop a connection to any other server; a caller that waits for a reply sees a lost connection."""
        if self._writer is not None and (self.host, self.port) != address:
            self._misplaced = True
            self._writer.transport.abort()


class RoutedTlsConnection(RoutedConnection, SSLConnection):
    """The same with TLS."""
