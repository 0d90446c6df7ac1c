"""redis-py's client of a cluster, whose faults are RedisErrors as those of any other client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.exceptions import AuthenticationError, NoPermissionError, RedisClusterException, SlotNotCoveredError
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.redis_errors import causes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supervisor.broker.routes import Address


class ClusterClient(RedisCluster):
    """Follows MOVED and ASK, which say that nothing was done; repeats nothing else."""

    @classmethod
    def of(cls, nodes: Iterable[Address], options: dict[str, Any], *, tls: bool) -> Self:
        """`nodes`: some of the cluster's. `options`: those of a connection, without retries."""
        known = {name: value for name, value in options.items() if name != "db"}
        # A part of the cluster that is down must not take the rest with it.
        return cls(startup_nodes=[ClusterNode(*node) for node in nodes], require_full_coverage=False, ssl=tls, **known)

    async def initialize(self, *args: Any, **options: Any) -> Self:
        """Ask for the slots. Raises redis-py's errors."""
        try:
            await super().initialize(*args, **options)
        except RedisClusterException as error:
            raise _as_redis_error(error) from error
        return self

    async def get_nodes_from_slot(self, command: str, *args: Any) -> Any:
        """The node for a command. Raises redis-py's errors."""
        try:
            return await super().get_nodes_from_slot(command, *args)
        except SlotNotCoveredError as error:
            raise _as_redis_error(error) from error


def _as_redis_error(error: RedisClusterException) -> Exception:
    """RedisClusterException is no RedisError; what was behind it may tell more."""
    refusals = (cause for cause in causes(error) if isinstance(cause, AuthenticationError | NoPermissionError))
    return next(refusals, RedisConnectionError(str(error)))
