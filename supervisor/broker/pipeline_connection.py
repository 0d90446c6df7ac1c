"""A connection that sends whole pipelines and reads their replies in order; used by one task at a time."""

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, ReadOnlyError, ResponseError

from supervisor.broker.command_connection import pack_command
from supervisor.broker.connect import connection
from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.broker.routed_connection import close, is_lost, lost
from supervisor.broker.routes import Address
from supervisor.errors import UsageError

#: A connection that was idle for longer is tested before it is used.
QUIET_S = 1.0
#: Other tasks run after this many replies, which may all have arrived at once.
REPLIES_AT_ONCE = 200
#: What a server answers instead of doing what it was asked for. redis-py derives the last three from ConnectionError.
REFUSALS = (ResponseError, BusyLoadingError, AuthenticationError, AuthorizationError)


class PipelineConnection:
    """A connection whose `open` fails before a byte of the pipeline is written.

    So a caller can tell what was never sent from what may have been. A connection that the server closed while it was
    idle is made again.
    """

    def __init__(self, source: str | Redis, *, connect_timeout_s: float, at: Address | None = None) -> None:
        """Prepare the connection; `open` connects.

        `source`: a URL, or a client whose server and credentials are used, but not its connections. `at`: the node,
        where the URL names a cluster.
        """
        self._source = source
        self._connect_timeout_s = connect_timeout_s
        self._at = at
        self._connection = (
            connection(source, at=at, connect_timeout_s=connect_timeout_s, name="supervisor-publisher")
            if isinstance(source, str)
            else _connection_like(source)
        )
        #: It has answered READONLY: after a failover another server answers at the same name.
        self._demoted = False
        #: When the last reply came, by `time.monotonic`.
        self._answered_s = time.monotonic()

    def twin(self) -> Self:
        """Return another connection to the same server, not yet connected."""
        return type(self)(self._source, connect_timeout_s=self._connect_timeout_s, at=self._at)

    async def open(self, probe_s: float) -> None:
        """Connect unless connected. An idle connection that does not answer within `probe_s` is replaced.

        Raises redis-py's errors and OSError; nothing was sent then.
        """
        if self._demoted or is_lost(self._connection):
            await self.drop()
        self._demoted = False
        await self._connection.connect()
        if time.monotonic() - self._answered_s > QUIET_S and not await self._works(probe_s):
            await self.drop()
            await self._connection.connect()
        self._answered_s = time.monotonic()

    async def send(self, packed: Sequence[bytes]) -> None:
        """Send packed commands. Raises redis-py's errors and OSError; how much was sent is then unknown."""
        try:
            await self._connection.send_packed_command(packed, check_health=False)
        except RuntimeError as error:
            raise lost(error) from None

    async def replies(self, count: int) -> tuple[Any, Exception | None]:
        """Read `count` replies; return the last one, and the first refusal among them, also within a transaction.

        Raises redis-py's errors and OSError when the connection fails; what became of the rest is then unknown.
        """
        read = self._connection.read_response
        reply: Any = None
        first: Exception | None = None
        for number in range(1, count + 1):
            try:
                reply = await read(disable_decoding=True, timeout=math.inf, disconnect_on_error=False)
            except REFUSALS as refusal:
                self._demoted |= isinstance(refusal, ReadOnlyError)
                reply, first = refusal, first or refusal
            if number % REPLIES_AT_ONCE == 0:
                await asyncio.sleep(0)
        if first is None and isinstance(reply, list):
            first = next((item for item in reply if isinstance(item, Exception)), None)
        self._answered_s = time.monotonic()
        return reply, first

    async def close(self) -> None:
        """Close the connection and wait until its socket is closed, which takes a round trip with TLS."""
        with contextlib.suppress(*REDIS_FAULTS):
            await close(self._connection)

    async def drop(self) -> None:
        """Close the connection; replies that are still to come are lost."""
        await close(self._connection, nowait=True)

    async def _works(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                await self.send([pack_command(("PING",))])
                await self.replies(1)
        except REDIS_FAULTS:
            return False
        return True


def _connection_like(client: Redis) -> AbstractConnection:
    pool = getattr(client, "connection_pool", None)
    if pool is None or not hasattr(pool, "make_connection"):
        raise UsageError(
            f"a publisher needs a URL or a redis.asyncio.Redis, not {type(client).__name__};"
            " a cluster's URL is redis+cluster://host:6379"
        )
    made: AbstractConnection = pool.make_connection()
    made.retry = Retry(NoBackoff(), 0)
    # redis-py wraps each send in a Task when there is a timeout; the publisher has its own.
    made.socket_timeout = None
    return made
