"""The publisher's connection: sends whole pipelines and yields their replies in order.

`open` fails before a byte of the pipeline is written, so a caller can tell what was never sent from what may have
been. A connection that the server closed while it was idle is made again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError, ResponseError

from supervisor.broker.connect import connection
from supervisor.broker.routed_connection import reopen, send_packed
from supervisor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

    from supervisor.broker.routes import Address


class PipelineConnection:
    """One connection, used by one task at a time."""

    def __init__(self, source: str | Redis, *, connect_timeout_s: float, at: Address | None = None) -> None:
        """`source`: a URL, or a client whose server and credentials are used; its own connections are not.

        `at`: the node, where the URL names a cluster.
        """
        self._connection = (
            connection(source, at=at, connect_timeout_s=connect_timeout_s, name="supervisor-publisher")
            if isinstance(source, str)
            else _connection_like(source)
        )
        self._demoted = False

    async def open(self) -> None:
        """Connect unless connected. Raises redis-py's errors and OSError; nothing was sent then."""
        await reopen(self._connection, demoted=self._demoted)
        self._demoted = False

    async def replies(self, packed: Sequence[bytes]) -> AsyncIterator[Any]:
        """Send packed commands and yield their replies in order, errors of the server as exceptions.

        Raises redis-py's errors and OSError when the connection fails; what became of the rest is then unknown.
        """
        await send_packed(self._connection, packed)
        for _ in packed:
            try:
                yield await self._connection.read_response(disable_decoding=True, timeout=math.inf)
            except ResponseError as error:
                self._demoted |= isinstance(error, ReadOnlyError)
                yield error

    async def drop(self) -> None:
        """Close the connection; replies that are still to come are lost."""
        await self._connection.disconnect(nowait=True)


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
