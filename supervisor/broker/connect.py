"""Connections to Redis: redis-py's own, with its silent retries off.

1. `client` for everything that is not the hot path; `connection` for the hot path, which drives
   redis-py's `Connection` directly (AUTH, TLS, SELECT and CLIENT SETNAME stay redis-py's).
2. Never call either in a process that will still fork.

Retries are off because redis-py repeats writes whose answer was lost, and re-reads of `>` then
strand what was delivered (redis-py 8: ten retries by default).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from supervisor.errors import ConfigError
from supervisor.settings.masking import masked

if TYPE_CHECKING:
    from redis.asyncio.client import Redis as RedisClient


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself."""

    #: `Redis 7.0.15` or `Valkey 9.1.2`.
    version: str
    #: What a crash of the server or its machine may cost: none, rdb, everysec or always.
    durability: str


def _options(url: str, connect_timeout_s: float) -> dict[str, Any]:
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        raise ConfigError(f"redis.url: {masked(url)!r}: {_reason(error)}") from None
    options.setdefault("socket_connect_timeout", connect_timeout_s)
    options.update(protocol=2, decode_responses=False, retry=Retry(NoBackoff(), 0))
    return options


def _reason(error: ValueError) -> str:
    """redis-py's words where they quote nothing: the others may hold a piece of the password."""
    text = str(error)
    if text.startswith(("Redis URL must specify", "Invalid value for")):
        return text
    return "it can't be taken apart; in user and password, write @ : / ? # as %40 %3A %2F %3F %23"


def client(url: str, *, timeout_s: float = 5.0, connect_timeout_s: float = 5.0) -> RedisClient:
    """A client with a pool of its own, bytes in and out, no retries. Close it with `aclose()`.

    Raises ConfigError for a URL that redis-py does not understand.
    """
    options = _options(url, connect_timeout_s)
    options["socket_timeout"] = timeout_s
    pool: ConnectionPool = ConnectionPool(**options)
    return Redis.from_pool(pool)


def connection(url: str, *, connect_timeout_s: float = 5.0, name: str = "") -> AbstractConnection:
    """One connection to be driven by hand, not yet connected; reads take their own timeouts."""
    options = _options(url, connect_timeout_s)
    # redis-py wraps each send in a Task when there is a timeout; a dead link shows at the read.
    options["socket_timeout"] = None
    kind = options.pop("connection_class", None)
    pool: ConnectionPool = ConnectionPool(**({"connection_class": kind} if kind else {}), **options)
    made: AbstractConnection = pool.make_connection()
    if name:
        made.client_name = name
    return made


async def describe(redis: RedisClient) -> Server:
    """Version and durability of the server. Raises redis-py's errors when it does not answer."""
    info: dict[str, Any] = await redis.info()
    if "valkey_version" in info:
        version = f"Valkey {info['valkey_version']}"
    else:
        version = f"Redis {info.get('redis_version', '?')}"
    return Server(version, await _durability(redis, info))


async def _durability(redis: RedisClient, info: dict[str, Any]) -> str:
    settings: dict[str, str] = {}
    try:
        for key in ("appendfsync", "save"):
            found = await redis.config_get(key)
            settings.update({_text(k): _text(v) for k, v in found.items()})
    except RedisError:  # CONFIG is often forbidden at hosted services
        pass
    if info.get("aof_enabled"):
        sync = settings.get("appendfsync", "everysec")
        return sync if sync in ("everysec", "always") else "rdb"
    return "rdb" if settings.get("save", "") else "none"


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
