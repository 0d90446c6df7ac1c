"""Makes redis-py's blocking client for every form of URL, for plain functions, which run in threads."""

from time import monotonic
from typing import Any, cast

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.retry import Retry
from redis.sentinel import Sentinel

from supervisor.broker.routed_connection import IDLE_MAX_S, keepalive_options
from supervisor.settings.redis_url import parse
from supervisor.unix_path import socket_path


class _FreshConnection(AbstractConnection):
    """Replaces a connection that was idle for long; goes before redis-py's class. See `routed_connection`."""

    _sent_s = 0.0

    def connect(self) -> None:
        """Connect unless connected. The pool calls it before each use."""
        if getattr(self, "_sock", None) is not None and monotonic() - self._sent_s > IDLE_MAX_S:
            self.disconnect()  # type: ignore[no-untyped-call]
        super().connect()  # type: ignore[no-untyped-call]

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send as redis-py does."""
        self._sent_s = monotonic()
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


class _Connection(_FreshConnection, Connection):
    """A TCP connection."""


class _TlsConnection(_FreshConnection, SSLConnection):
    """The same with TLS."""


class _UnixConnection(UnixDomainSocketConnection):
    """A connection through a unix socket, however long its path."""

    def _connect(self) -> Any:
        path = self.path
        with socket_path(path) as short:
            self.path = short
            try:
                return super()._connect()  # type: ignore[no-untyped-call]
            finally:
                self.path = path


def blocking_client(url: str, *, timeout_s: float = 5.0) -> Redis:
    """Return a client that threads may share: bytes in and out, no retries. Close it with `close()`.

    For a cluster it is redis-py's RedisCluster. The URL is one that `broker.connect` takes.
    """
    parsed = parse(url)
    options: dict[str, Any] = dict(parse_url(parsed.url))
    kind = options.pop("connection_class", None)
    options.setdefault("socket_connect_timeout", timeout_s)
    options |= {"socket_timeout": timeout_s, "protocol": 2, "decode_responses": False}
    options["retry"] = Retry(NoBackoff(), 0)
    if parsed.kind == "server":
        if kind is UnixDomainSocketConnection:
            options["connection_class"] = _UnixConnection
        else:
            options["connection_class"] = _TlsConnection if kind is SSLConnection else _Connection
            options = {"socket_keepalive": True, "socket_keepalive_options": keepalive_options(), **options}
        return Redis(connection_pool=ConnectionPool(**options))
    tls: dict[str, Any] = {"ssl": True} if kind is SSLConnection else {}
    for name in ("host", "port"):
        options.pop(name, None)
    if parsed.kind == "cluster":
        options.pop("db", None)
        nodes = [ClusterNode(host, port) for host, port in parsed.hosts]
        made = RedisCluster(startup_nodes=nodes, require_full_coverage=False, **tls, **options)
        return cast("Redis", made)
    # Sentinel has users of its own; the TLS options apply to its connections too.
    asking = {name: value for name, value in options.items() if name not in ("db", "username", "password")}
    asking |= {"username": parsed.sentinel_username, "password": parsed.sentinel_password, **tls}
    sentinel: Any = Sentinel(parsed.hosts, sentinel_kwargs=asking)
    found: Redis = sentinel.master_for(parsed.master, **tls, **options)
    return found
