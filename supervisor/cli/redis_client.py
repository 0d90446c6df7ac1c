"""The Redis client of a command; its errors are turned into text that names the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from redis.exceptions import RedisError, ResponseError

from supervisor.broker.connect import client
from supervisor.broker.redis_errors import CONNECTION_LOST, likely_cause, permanent_cause
from supervisor.cli.common import warn
from supervisor.errors import RedisUnreachableError, SupervisorError
from supervisor.settings.masking import masked
from supervisor.settings.paths import redis_url

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from supervisor.settings.model import Settings

T = TypeVar("T")


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncIterator[Redis]:
    """Open a client. Inside, redis-py's errors become RedisUnreachableError or SupervisorError."""
    redis = client(redis_url(settings), connect_timeout_s=settings.redis.connect_timeout_s)
    try:
        yield redis
    except BrokenPipeError:  # stdout, not Redis
        raise
    except CONNECTION_LOST as error:
        raise unreachable(settings, error) from None
    except RedisError as error:
        raise refused(settings, error) from None
    finally:
        await redis.aclose()


async def read_each(streams: Iterable[str], read: Callable[[str], Awaitable[T]]) -> list[T]:
    """Return what `read` returns for each stream. Warns of those that Redis refuses; raises when it refuses all."""
    results: list[T] = []
    refusals: dict[str, ResponseError] = {}
    for stream in streams:
        try:
            results.append(await read(stream))
        except ResponseError as error:
            refusals[stream] = error
    if refusals and not results:
        raise next(iter(refusals.values()))
    for stream, refusal in refusals.items():
        warn(f"{stream} can't be read: {refusal}")
    return results


def refused(settings: Settings, error: Exception, more: str = "") -> SupervisorError:
    """Make the error for a server that answers with a refusal; `more` is added to it."""
    words = permanent_cause(error)
    text = f"Redis at {masked(redis_url(settings))} {words}" if words else f"Redis refused: {error}"
    return SupervisorError(f"{text}\n{more}" if more else text)


def unreachable(settings: Settings, error: Exception, more: str = "") -> RedisUnreachableError:
    """Make the error for a server that does not answer; `more` says what was done before."""
    url = redis_url(settings)
    words = permanent_cause(error) or f"can't be reached: {error or type(error).__name__}{likely_cause(url, error)}"
    text = f"Redis at {masked(url)} {words}"
    if not settings.redis.url:
        text += "\nredis.url is not set, and the embedded server runs only during `supervisor start`."
    return RedisUnreachableError(f"{text}\n{more}" if more else text)
