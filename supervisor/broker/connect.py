"""Makes connections to Redis: redis-py's own, without its silent retries.

1. `client` is for everything but the hot path; `connection` is for the hot path, which drives redis-py's
   `Connection` directly (AUTH, TLS, SELECT and CLIENT SETNAME stay redis-py's). Both take every form of URL: with
   Sentinel and in a cluster the server is found at each connect.
2. Never call either in a process that will still fork.

Retries are off because redis-py repeats writes whose answer was lost, and repeated reads of `>` then strand what was
delivered (redis-py 8: ten retries by default).
"""

import asyncio
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self, cast
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.client import Redis as RedisClient
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    ConnectionPool,
    DefaultParser,
    SSLConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    SlotNotCoveredError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.redis_errors import causes
from supervisor.broker.routed_connection import (
    RoutedConnection,
    RoutedTlsConnection,
    TcpConnection,
    TlsConnection,
    UnixConnection,
    keepalive_options,
)
from supervisor.broker.routes import ASK_LIMIT_S, Address, ClusterRoute, FixedRoute, Route, SentinelRoute
from supervisor.errors import ConfigError
from supervisor.settings.masking import masked
from supervisor.settings.redis_url import parse
from supervisor.text import decoded

try:
    from redis.driver_info import DriverInfo
except ImportError:  # an older redis-py, which finds its version when it is imported
    _DRIVER: dict[str, Any] = {}
else:
    # Found once, before workers are forked: else each connection looks for redis-py's version among all packages.
    _DRIVER = {"driver_info": DriverInfo()}

_UNREADABLE = "it can't be taken apart; in user and password, write @ : / ? # as %40 %3A %2F %3F %23"
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


@dataclass(frozen=True, slots=True)
class Server:
    """What a server reports about itself."""

    #: `Redis 7.0.15` or `Valkey 9.1.2`.
    version: str
    #: What a crash of the server or its machine may cost: none, rdb, everysec or always.
    durability: str
    #: The share of `maxmemory` in use; None without a limit.
    memory_percent: float | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    """A parsed URL, for redis-py."""

    kind: type[AbstractConnection]
    #: Without host and port, which the route finds.
    options: dict[str, Any]
    #: None: a unix socket.
    route: Route | None = None
    nodes: tuple[Address, ...] = ()


class ClusterClient(RedisCluster):
    """redis-py's cluster client, whose errors are RedisErrors like those of any other client.

    It follows MOVED and ASK, which mean that nothing was done; it repeats nothing else.
    """

    @classmethod
    def of(cls, nodes: Iterable[Address], options: dict[str, Any], *, tls: bool) -> Self:
        """Make one; `nodes` are some of the cluster's, `options` those of a connection, without retries."""
        known = {name: value for name, value in options.items() if name != "db"}
        # A part of the cluster that is down must not take the rest with it.
        made = cls(startup_nodes=[ClusterNode(*node) for node in nodes], require_full_coverage=False, ssl=tls, **known)
        # redis-py takes no class of connections here.
        kind = made.connection_kwargs["connection_class"] = TlsConnection if tls else TcpConnection
        for node in made.nodes_manager.startup_nodes.values():
            node.connection_class = kind
        return made

    async def initialize(self, *args: Any, **options: Any) -> Self:
        """Look the slots up. Raises redis-py's errors."""
        try:
            await super().initialize(*args, **options)
        except RedisClusterException as error:
            raise _as_redis_error(error) from error
        return self

    async def get_nodes_from_slot(self, command: str, *args: Any) -> Any:
        """Return the node for a command. Raises redis-py's errors."""
        try:
            return await super().get_nodes_from_slot(command, *args)
        except SlotNotCoveredError as error:
            raise _as_redis_error(error) from error


def _as_redis_error(error: RedisClusterException) -> Exception:
    """Return the refusal behind a RedisClusterException, which is not a RedisError, or else a ConnectionError."""
    refusals = (cause for cause in causes(error) if isinstance(cause, AuthenticationError | NoPermissionError))
    return next(refusals, RedisConnectionError(str(error)))


def client(url: str, *, timeout_s: float = 5.0, connect_timeout_s: float = 5.0) -> RedisClient:
    """Return a client with its own pools, bytes in and out, no retries. Close it with `aclose()`.

    For a cluster it is redis-py's RedisCluster, which has the same commands: all keys of a command must be in one
    slot. Raises ConfigError for a URL that redis-py does not understand.
    """
    target = _target(url, connect_timeout_s, running_loop())
    options = {**target.options, "socket_timeout": timeout_s}
    if isinstance(target.route, ClusterRoute):
        made = ClusterClient.of(target.nodes, options, tls=issubclass(target.kind, SSLConnection))
        return cast("RedisClient", made)
    if target.route is not None:
        options["route"] = target.route
    pool: ConnectionPool = ConnectionPool(connection_class=target.kind, **options)
    return Redis.from_pool(pool)


def connection(
    url: str,
    *,
    key: str = "",
    at: Address | None = None,
    connect_timeout_s: float = 5.0,
    name: str = "",
    parser: type[Any] = DefaultParser,
) -> AbstractConnection:
    """Return a connection to be driven by hand, not yet connected; reads take their own timeouts.

    Each connect finds the server of `key`; with `at` it goes to that node of a cluster.
    """
    target = _target(url, connect_timeout_s, running_loop())
    # redis-py wraps each send in a Task when there is a timeout; a dead connection shows at the read.
    options = {**target.options, "socket_timeout": None, "parser_class": parser}
    if name:
        options["client_name"] = name
    if at is not None:
        options["route"] = FixedRoute(at)
    elif target.route is not None:
        options |= {"route": target.route, "key": key}
    return target.kind(**options)


def cluster(url: str, *, connect_timeout_s: float = 5.0) -> ClusterRoute | None:
    """Return the route of a cluster's URL, None for any other URL."""
    route = _target(url, connect_timeout_s, running_loop()).route
    return route if isinstance(route, ClusterRoute) else None


@lru_cache(maxsize=8)
def _target(url: str, connect_timeout_s: float, _loop: asyncio.AbstractEventLoop | None) -> _Target:
    """Parse a URL; cached, so that all connections of an event loop share one route and its watcher."""
    try:
        parsed = parse(url)
    except ValueError as error:
        raise _refused(url, error) from None
    try:
        options: dict[str, Any] = dict(parse_url(parsed.url))
    except ValueError as error:  # its other messages may contain a piece of the password
        raise _refused(url, error if str(error).startswith("Invalid value for") else _UNREADABLE) from None
    plain = options.pop("connection_class", Connection)
    options.setdefault("socket_connect_timeout", connect_timeout_s)
    options.update(protocol=2, decode_responses=False, retry=Retry(NoBackoff(), 0))
    if not options.keys() & {"lib_name", "lib_version"}:
        options.update(_DRIVER)
    _check(url, plain, options)
    if not issubclass(plain, Connection):  # a unix socket
        if "path" in options:  # redis-py replaces bytes that are not UTF-8
            options["path"] = unquote(urlsplit(parsed.url).path, errors="surrogateescape")
        return _Target(UnixConnection, options)
    options.setdefault("socket_keepalive", True)
    options.setdefault("socket_keepalive_options", keepalive_options())
    there = Address(options.pop("host", "localhost"), int(options.pop("port", 6379)))
    routed, unrouted = (
        (RoutedTlsConnection, TlsConnection) if plain is SSLConnection else (RoutedConnection, TcpConnection)
    )
    if parsed.kind == "server":
        return _Target(routed, options, FixedRoute(there))
    hosts = tuple(Address(host, port) for host, port in parsed.hosts)
    asking = {**options, "db": 0, "socket_timeout": ASK_LIMIT_S, "socket_connect_timeout": ASK_LIMIT_S}
    if parsed.kind == "cluster":
        return _Target(routed, options, ClusterRoute(hosts, unrouted, asking), hosts)
    # Sentinel has its own users; the TLS options apply to its connections too.
    asking |= {"username": parsed.sentinel_username, "password": parsed.sentinel_password}
    return _Target(routed, options, SentinelRoute(hosts, parsed.master, unrouted, asking))


def _check(url: str, kind: type[AbstractConnection], options: dict[str, Any]) -> None:
    """Raise ConfigError for options that redis-py does not take, and for files that can't be read."""
    try:
        kind(**options)
    except TypeError as error:
        option = _UNEXPECTED.search(str(error))
        # It may be a piece of a password with an unescaped `?`.
        reason = f"redis-py has no option {option[1]!r}" if option and f"{option[1]}=" in masked(url) else _UNREADABLE
        raise _refused(url, reason) from None
    except RedisError as error:
        raise _refused(url, error) from None
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        path = options.get(name)
        if path and not os.access(path, os.R_OK):
            raise _refused(url, f"{name}: the file can't be read")


def _refused(url: str, reason: object) -> ConfigError:
    return ConfigError(f"redis.url: {masked(url)!r}: {reason}")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def check_url(url: str) -> None:
    """Raise ConfigError for a URL that `client` does not take; empty means the embedded server. Connects to nothing."""
    if url:
        _target(url, 1.0, None)


async def describe(redis: RedisClient) -> Server:
    """Return version and durability of the server. Raises redis-py's errors when it does not answer."""
    info: dict[str, Any] = await redis.info()
    if "valkey_version" in info:
        version = f"Valkey {info['valkey_version']}"
    else:
        version = f"Redis {info.get('redis_version', '?')}"
    limit = info.get("maxmemory")
    memory_percent = 100 * info["used_memory"] / limit if limit and "used_memory" in info else None
    return Server(version, await _durability(redis, info), memory_percent)


async def _durability(redis: RedisClient, info: dict[str, Any]) -> str:
    settings: dict[str, str] = {}
    try:
        for key in ("appendfsync", "save"):
            reply: dict[Any, Any] = await redis.config_get(key)
            settings.update({decoded(name): decoded(value) for name, value in reply.items()})
    except RedisError:  # CONFIG is often forbidden at hosted services
        pass
    if info.get("aof_enabled"):
        sync = settings.get("appendfsync", "everysec")
        return sync if sync in ("everysec", "always") else "rdb"
    return "rdb" if settings.get("save", "") else "none"
