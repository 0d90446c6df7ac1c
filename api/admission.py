"""Decides whether a stream may be published to now: the allow-list, and limits of backlog and memory."""

from fnmatch import fnmatchcase

from supervisor.settings.model import ApiSettings
from supervisor.status import RedisStatus
from supervisor.text import did_you_mean

from .problems import Problem


def check_allowed(settings: ApiSettings, stream: str) -> None:
    """Raise Problem unless `[api] streams` allows the stream."""
    allowed = settings.streams
    if allowed and not any(fnmatchcase(stream, pattern) for pattern in allowed):
        raise Problem(
            "stream-not-allowed",
            f"{stream!r} is not in [api] streams{did_you_mean(stream, allowed)} (allowed: {', '.join(allowed)})",
        )


def check_limits(settings: ApiSettings, stream: str, redis_status: RedisStatus | None) -> None:
    """Raise Problem while the stream's groups are too far behind, or Redis is short of memory."""
    if redis_status is None:
        return
    used = redis_status.memory_percent
    if settings.max_memory_percent and used is not None and used > settings.max_memory_percent:
        raise Problem(
            "memory", f"Redis uses {used:.1f} % of its maxmemory; the limit is {settings.max_memory_percent:g} %"
        )
    if not settings.max_lag:
        return
    for group in redis_status.groups:
        behind = group["lag"] + group["pending"]
        if group["stream"] == stream and behind > settings.max_lag:
            raise Problem(
                "backlog",
                f"group {group['group']!r} has {behind} messages of {stream!r} to settle; the limit is"
                f" {settings.max_lag}",
            )


def has_limits(settings: ApiSettings) -> bool:
    """Return whether there is a limit to check."""
    return bool(settings.max_lag or settings.max_memory_percent)
