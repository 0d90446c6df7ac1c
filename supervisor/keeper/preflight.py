"""Checks before anything is started that Redis answers and the pool's name is free, and creates the groups.

It runs in a forked child of the arbiter, which itself never speaks to Redis, and reports as one line of JSON.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from supervisor.broker.command_connection import CommandConnection
from supervisor.broker.connect import client, describe
from supervisor.broker.group_reader import GroupReader
from supervisor.broker.inspect import trimmed_unread
from supervisor.broker.redis_errors import FULL, REDIS_FAULTS, code_of, likely_cause, permanent_cause
from supervisor.core.backoff import backoff_s
from supervisor.errors import (
    EXIT_OK,
    AlreadyRunningError,
    ConfigError,
    RedisUnreachableError,
    SupervisorError,
)
from supervisor.handling.loader import HandlerSpec
from supervisor.keeper.lease import take_when_free
from supervisor.keys import consumer_name, fits_cluster, pool_id, retries_key
from supervisor.log import logger
from supervisor.outbox.check import check_outbox
from supervisor.settings.masking import masked
from supervisor.settings.model import Settings
from supervisor.settings.paths import redis_url
from supervisor.settings.redis_url import is_cluster

#: A wait for Redis that takes longer than this is logged.
PATIENCE_S = 1.0


#: A consumer that asks for what it has pending after this id gets nothing. The highest id of all means `>` to a server.
_LAST_ID = b"18446744073709551615-18446744073709551614"


def _nowhere(_token: str) -> str:
    return ""


def run(
    settings: Settings,
    specs: Sequence[HandlerSpec],
    token: str,
    out_fd: int,
    where_runs: Callable[[str], str] = _nowhere,
) -> int:
    """Run the checks, write the report to `out_fd` and return the exit code.

    `where_runs` tells where on this machine the pool with a token runs; empty when that is not known.
    """
    code: int = EXIT_OK
    try:
        report = asyncio.run(check(settings, specs, token, where_runs))
    except SupervisorError as error:
        report, code = {"error": str(error)}, error.exit_code
    os.write(out_fd, json.dumps(report).encode() + b"\n")
    return code


async def check(
    settings: Settings, specs: Sequence[HandlerSpec], token: str, where_runs: Callable[[str], str] = _nowhere
) -> dict[str, Any]:
    """Create missing groups, take the lease and do what workers do; return what the server is.

    Raises SupervisorError with what a pool could not work with.
    """
    url = redis_url(settings)
    if is_cluster(url):
        _check_names(specs)
    check_outbox(settings)
    redis = client(url, connect_timeout_s=settings.redis.connect_timeout_s)
    try:
        await _wait_for(redis, url, settings)
        server = await describe(redis)
        pool = pool_id(settings.pool.host, settings.pool.name)
        if not await take_when_free(redis, pool, token, partial(_begin_wait, settings, pool, where_runs)):
            raise _taken(pool, "it has renewed its lease")
        for spec in specs:
            if await make_group(redis, spec):
                await _check_reading(settings, url, spec, pool)
                await trimmed_unread(redis, spec.stream, spec.group, keep=True)
    except RedisError as error:
        cause = permanent_cause(error) or f"refuses to serve: {error}"
        raise RedisUnreachableError(f"Redis at {masked(url)} {cause}") from None
    finally:
        await redis.aclose()
    return {
        "redis": {"url": masked(url), "version": server.version, "durability": server.durability},
        "streams": sorted({spec.stream for spec in specs}),
    }


def _taken(pool: str, sign: str) -> AlreadyRunningError:
    return AlreadyRunningError(
        f"another pool named {pool!r} is alive on this Redis: {sign}. Consumers are named after the pool, so stop the"
        " other one, or give this one a name of its own: [pool] name = ... or SUPERVISOR_POOL__NAME"
    )


def _begin_wait(settings: Settings, pool: str, where_runs: Callable[[str], str], holder: str, limit_s: float) -> None:
    """Log that the start waits for the lease. Raises AlreadyRunningError when its holder runs on this machine."""
    if place := where_runs(holder):
        raise _taken(pool, f"it runs on this machine ({place})")
    logger(settings).warning(
        "waiting for the lease",
        pool=pool,
        limit_s=round(limit_s, 1),
        hint="a pool of this name was killed or still runs; if nobody renews its lease, this one goes on",
    )


async def _check_reading(settings: Settings, url: str, spec: HandlerSpec, pool: str) -> None:
    """Read and settle nothing the way a worker does, by its kinds of connection and commands.

    What a worker may not do would otherwise show only as a stream that nobody reads. Raises redis-py's errors.
    """
    stream, group, consumer = spec.stream, spec.group, consumer_name(pool, 0)
    limit_s = settings.redis.connect_timeout_s
    reader = GroupReader(url, [stream], group, consumer, connect_timeout_s=limit_s)
    commands = CommandConnection(url, key=stream, name=f"supervisor-{consumer}", connect_timeout_s=limit_s)
    try:
        await reader.connect()
        await reader.send_pending(stream, 1, _LAST_ID, limit_s)
        await reader.receive()
        await commands.call("XACK", stream, group, "0-0")
        await commands.call("XPENDING", stream, group)
        await commands.call("HMGET", retries_key(stream, group), "0-0")
    finally:
        await reader.close()
        await commands.close()


def _check_names(specs: Sequence[HandlerSpec]) -> None:
    for spec in specs:
        if not fits_cluster(spec.stream):
            raise ConfigError(
                f"{spec.where}: stream {spec.stream!r}: in a cluster every }} must end a {{tag}};"
                " otherwise no other key can be in the stream's slot"
            )


async def make_group(redis: Redis, spec: HandlerSpec) -> bool:
    """Create the handler's group and its stream where they are missing; False when a full server refuses it."""
    try:
        await redis.xgroup_create(spec.stream, spec.group, spec.options.start, mkstream=True)
    except ResponseError as error:
        if str(error).startswith("WRONGTYPE"):
            raise ConfigError(f"{spec.where}: the key {spec.stream!r} in Redis is not a stream") from None
        # Refused even where the group exists. The pool starts nevertheless: only its handlers make room there.
        if code_of(error) == FULL:
            return False
        if not str(error).startswith("BUSYGROUP"):
            raise
    return True


async def _wait_for(redis: Redis, url: str, settings: Settings) -> None:
    """Wait until the server answers: one that starts or loads its data needs time."""
    limit_s = settings.redis.connect_timeout_s
    deadline_s = time.monotonic() + limit_s

    def log_wait() -> None:
        logger(settings).info("waiting for Redis", url=masked(url), limit_s=limit_s)

    patience = asyncio.get_running_loop().call_later(PATIENCE_S, log_wait)
    tries = 0
    while True:
        tries += 1
        try:
            await redis.ping()
            patience.cancel()
            return
        except REDIS_FAULTS as error:
            if cause := permanent_cause(error):
                raise RedisUnreachableError(f"Redis at {masked(url)} {cause}") from None
            if time.monotonic() > deadline_s:
                raise RedisUnreachableError(
                    f"Redis at {masked(url)} does not answer within {limit_s:g} s: {error}{likely_cause(url, error)};"
                    " check [redis] url or REDIS_URL, or leave it empty for an embedded server"
                ) from None
        await asyncio.sleep(backoff_s(tries, 0.02, 0.5, random.random))
