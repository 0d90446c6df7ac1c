"""Public helpers for FastAPI: consumers inside an app, and dependencies for routers.

`PublisherDep` and `RedisDep` give a route the publisher and a Redis client, `IdempotencyKeyDep` the key in the header
Idempotency-Key. They work in a router that the HTTP service mounts (`[api] routers`) and in your own app with the
`lifespan` of this module:

    @router.post("/orders", status_code=201)
    async def create(order: Order, publisher: PublisherDep) -> dict[str, str]:
        return {"id": (await publisher.publish("orders", order)).id}
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from fastapi import Depends, Header, HTTPException
from redis.asyncio import Redis
from starlette.requests import HTTPConnection

from supervisor.errors import ConfigError, UsageError
from supervisor.publisher import KEY_BYTES_MAX, Publisher

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded

__all__ = [
    "IdempotencyKeyDep",
    "PublisherDep",
    "RedisDep",
    "get_idempotency_key",
    "get_publisher",
    "get_redis",
    "lifespan",
]

_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
#: For descriptions: a bare word, or a string of RFC 8941.
IDEMPOTENCY_KEY_PATTERN = r'^([!#-~]([ -~]*[!-~])?|"[ !#-\[\]-~]+")$'
Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]


class AppConnections(NamedTuple):
    """The connections of an app: what `app.state.supervisor` holds."""

    publisher: Publisher
    redis: Redis


async def get_publisher(connection: HTTPConnection) -> Publisher:
    """Return the app's publisher. It is shared by all requests and closed with the app."""
    return _connections(connection).publisher


async def get_redis(connection: HTTPConnection) -> Redis:
    """Return the app's Redis client: bytes in and out, no retries. It is closed with the app."""
    return _connections(connection).redis


def get_idempotency_key(connection: HTTPConnection) -> str | None:
    """Return the key in the header Idempotency-Key, with or without quotes (RFC 8941). Raises HTTPException (400)."""
    header = connection.headers.get("idempotency-key")
    if header is None:
        return None
    with suppress(UnicodeDecodeError):  # the same key as from other doors, where a client writes it as UTF-8
        header = header.encode("latin-1").decode()
    quoted = _QUOTED.fullmatch(header.strip())
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else header.strip()
    if not key or len(key.encode()) > KEY_BYTES_MAX or not key.isprintable():
        raise HTTPException(400, f"Idempotency-Key must have 1 to {KEY_BYTES_MAX} printable characters")
    return key


async def _described_key(
    connection: HTTPConnection,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="What is sent again with the same key is stored once in 24 h.",
            json_schema_extra={"maxLength": KEY_BYTES_MAX, "pattern": IDEMPOTENCY_KEY_PATTERN},
        ),
    ] = None,
) -> str | None:
    return get_idempotency_key(connection)


PublisherDep = Annotated[Publisher, Depends(get_publisher)]
RedisDep = Annotated[Redis, Depends(get_redis)]
IdempotencyKeyDep = Annotated[str | None, Depends(_described_key)]


def lifespan(
    *handlers: Callable[..., Any],
    consumers: int = 1,
    config: Path | str | None = None,
    redis_url: str | None = None,
    name: str = "fastapi",
) -> Lifespan:
    """Make a lifespan that runs `handlers` (or those of config.toml) in the app: `FastAPI(lifespan=lifespan(...))`.

    The handlers run as `consumers` consumers, tasks of the app's own event loop, so a handler that blocks also
    blocks the app. When the app ends, they finish and ack the messages in hand first.

    `config`, `redis_url` and the environment say where Redis is, as for the command line; there is no embedded
    server here. Where handlers and `redis_url` are given, a ./config.toml that is not the pool's is ignored. Raises
    UsageError without a Redis URL, HandlerError and ConfigError for wrong declarations and settings, all before the
    app starts.

    Each process of the app has its own name, however many there are (`uvicorn --workers 4`, a
    rolling deploy). Its consumers are `<host>:<name>-<number>:<slot>` with the lowest number that no live process
    of that `name` has. The number is a lease in Redis: the app gives it back when it ends, and it expires ten
    seconds after the process was killed. The other processes, or the next that starts, then take over the
    messages that were still pending.
    """
    from supervisor.shared_state import SLOTS_MAX

    if not re.fullmatch(r"[^\s:{}]+", name):
        raise UsageError(f"lifespan: name = {name!r}: it must have no spaces, colons and braces")
    if not 1 <= consumers <= SLOTS_MAX:
        raise UsageError(f"lifespan: consumers = {consumers}: allowed are 1 to {SLOTS_MAX}")

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[None]:
        # Imported here because a router that needs only the dependencies must not import the consumers.
        from supervisor.app_consumers import AppConsumers
        from supervisor.broker.connect import client
        from supervisor.handling.loader import load_handlers, specs_of

        loaded = _load(config, redis_url, complete=bool(handlers and redis_url))
        settings = loaded.settings
        specs = specs_of(settings, handlers) if handlers else load_handlers(settings, loaded.root, loaded.origins)
        redis = client(settings.redis.url, connect_timeout_s=settings.redis.connect_timeout_s)
        running = AppConsumers(settings, specs, consumers, name)
        async with Publisher(settings.redis.url) as publisher, aclosing(redis):
            app.state.supervisor = AppConnections(publisher, redis)
            try:
                yield
            finally:
                await running.stop()

    return run


def _load(config: Path | str | None, redis_url: str | None, *, complete: bool) -> Loaded:
    """Read the settings; where the arguments are `complete`, a ./config.toml of another program is ignored."""
    from supervisor.log import logger
    from supervisor.settings.load import load

    flags = {"redis.url": redis_url} if redis_url else {}
    try:
        loaded = load(Path(config) if config else None, flags)
    except ConfigError as error:
        if config or not complete or os.environ.get("SUPERVISOR_CONFIG"):
            raise
        loaded = load(None, flags, look=False)
        logger(loaded.settings, pid=os.getpid()).warning("config.toml ignored", error=str(error))
    if not loaded.settings.redis.url:
        raise UsageError("lifespan: no Redis URL: give redis_url=..., REDIS_URL or [redis] url in config.toml")
    return loaded


def _connections(connection: HTTPConnection) -> AppConnections:
    connections: AppConnections | None = getattr(connection.app.state, "supervisor", None)
    if connections is None:
        raise UsageError(
            "this app has no publisher and no Redis client: mount the router in the HTTP service ([api] routers),"
            " or start the app with lifespan=supervisor.fastapi.lifespan(...)"
        )
    return connections
