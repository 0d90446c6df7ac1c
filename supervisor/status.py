"""Collects the state of a pool and its groups into one document, for `supervisor status` and the HTTP service.

Processes come from the arbiter, groups from Redis. It starts nothing and changes nothing.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from supervisor.broker import inspect
from supervisor.broker.connect import client, describe
from supervisor.broker.later_set import counts, noted_streams
from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.control import last_groups
from supervisor.control.client import request
from supervisor.errors import HandlerError, NotRunningError
from supervisor.settings.masking import masked
from supervisor.settings.model import Settings
from supervisor.settings.paths import pool_paths, redis_url

#: A Redis that does not answer within this time is shown as unreachable.
REDIS_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True)
class RedisStatus:
    """What Redis says of itself and of the groups."""

    #: `{"url", "version", "durability"}`, and `error` when it can't be used.
    server: dict[str, Any]
    groups: list[dict[str, Any]] = field(default_factory=list)
    #: What is to be published later, of each stream that has some.
    later: list[dict[str, Any]] = field(default_factory=list)
    #: The schedules of the configuration: their last and next ticks, and which are paused.
    schedules: list[dict[str, Any]] = field(default_factory=list)
    #: Why the figures of some streams are missing.
    problems: list[str] = field(default_factory=list)
    #: Stream and group of all handlers, also of those that are not in `groups`.
    pairs: Sequence[tuple[str, str]] = ()
    #: The share of `maxmemory` in use; None without a limit, or where it is not known.
    memory_percent: float | None = None


async def collect(settings: Settings, root: Path | None = None) -> dict[str, Any]:
    """Return the document of `supervisor status --json`. Never raises for a pool or a Redis that is down.

    Where no pool runs here, the groups are those of the pool that ran here last. With `root`, they are those of the
    handlers that can be imported from there.
    """
    answer = await asyncio.to_thread(_ask_arbiter, settings)
    url = answer.get("redis_url") or redis_url(settings)
    redis = client(url, timeout_s=REDIS_LIMIT_S, connect_timeout_s=REDIS_LIMIT_S)
    try:
        redis_status = await read_redis_status(redis, url, pairs_of(answer, settings, root), settings)
    finally:
        await redis.aclose()
    if "error" in redis_status.server and answer["pid"] is None and not settings.redis.url:
        redis_status.server["error"] = "the embedded server runs only during `supervisor start`"
    return document(answer, redis_status, await with_memory(answer.get("workers", [])))


async def read_redis_status(
    redis: Redis, url: str, pairs: Sequence[tuple[str, str]], settings: Settings
) -> RedisStatus:
    """Ask Redis about itself and the groups. The result names what it refuses or does not answer."""
    server: dict[str, Any] = {"url": masked(url), "version": None, "durability": None}
    try:
        described = await describe(redis)
        server |= {"version": described.version, "durability": described.durability}
        groups, problems = await _readable_groups(redis, pairs)
        later = await _later(redis, pairs)
        schedules = await _schedules(redis, settings) if settings.schedule else []
    except REDIS_FAULTS as error:
        return RedisStatus({**server, "error": str(error) or type(error).__name__})
    return RedisStatus(server, groups, later, schedules, problems, pairs, described.memory_percent)


async def _later(redis: Redis, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Return what is to be published later; nothing where a user may not read it."""
    try:
        streams = sorted({*(stream for stream, _ in pairs), *await noted_streams(redis)})
        return [count._asdict() for count in await counts(redis, streams)]
    except ResponseError:
        return []


async def _schedules(redis: Redis, settings: Settings) -> list[dict[str, Any]]:
    """Return the ticks of the schedules; nothing where a user may not read them."""
    from supervisor.broker.schedules import overview
    from supervisor.core.schedule import schedules_of

    try:
        schedules = await overview(redis, schedules_of(settings))
    except ResponseError:
        return []
    return [
        {
            "name": one["name"],
            "stream": one["stream"],
            "last": one["last"],
            "next": next(iter(one["next"]), None),
            "paused_since": one["paused_since"],
        }
        for one in schedules
    ]


async def _readable_groups(redis: Redis, pairs: Sequence[tuple[str, str]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the groups, and why some could not be read: one wrong key must not hide the others."""
    try:
        return [info.as_dict() for info in await inspect.groups(redis, pairs)], []
    except ResponseError:
        groups, problems = [], []
    for stream, group in pairs:
        try:
            groups += [info.as_dict() for info in await inspect.groups(redis, [(stream, group)])]
        except ResponseError as error:
            text = str(error)
            problems.append(text if stream in text else f"{stream}: {text}")
    return groups, list(dict.fromkeys(problems))


def document(answer: dict[str, Any], redis_status: RedisStatus, workers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the document of the arbiter's answer, what Redis says, and the workers with their memory."""
    reasons = list(answer.get("degraded_reasons", []))
    if "error" in redis_status.server:
        reasons.append(f"Redis can't be used: {redis_status.server['error']}")
    reasons += [f"a stream can't be read: {problem}" for problem in redis_status.problems]
    wrong = "error" in redis_status.server or redis_status.problems
    state = "degraded" if wrong and answer["state"] in ("healthy", "paused") else answer["state"]
    head = {"state": state, "pid": answer["pid"], "uptime_s": answer["uptime_s"], "redis": redis_status.server}
    of_redis = {"groups": redis_status.groups, "later": redis_status.later, "schedules": redis_status.schedules}
    known = {"workers": workers, **of_redis}
    rest = {k: v for k, v in answer.items() if k not in ("redis", "redis_url", "consumers", *head, *known)}
    return {**head, **known, "reason": None, **rest, "degraded_reasons": reasons if answer["pid"] else []}


def without_pool(reason: str | None, state: str = "down") -> dict[str, Any]:
    """Return the answer of a pool that does not run: each field of a running one's, empty or None."""
    lists = ("degraded_reasons", "cut_off", "circuits", "workers", "services")
    unknown = ("pid", "uptime_s", "burst", "config", "state_dir", "paused", "paused_since", "breaker_open", "outbox")
    operations = ("operation", "last_operation")
    return {"state": state, "reason": reason, **dict.fromkeys(unknown + operations), **{name: [] for name in lists}}


def configured_pairs(settings: Settings, root: Path) -> list[tuple[str, str]]:
    """Return (stream, group) of each handler; imports the handlers. Raises HandlerError."""
    from supervisor.handling.loader import load_handlers

    return [(spec.stream, spec.group) for spec in load_handlers(settings, root)]


async def with_memory(workers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the resident and proportional memory of each worker, None where the system does not report it.

    The kernel walks all pages of a process for it and may block that process. So it is read only for a
    reader of the status, in a thread, and never by the arbiter.
    """

    def look() -> list[dict[str, Any]]:
        return [{**worker, **_memory(worker.get("pid"))} for worker in workers]

    return await asyncio.to_thread(look)


def _ask_arbiter(settings: Settings) -> dict[str, Any]:
    try:
        return request(pool_paths(settings), "status")
    except NotRunningError as error:
        return without_pool(str(error))


def pairs_of(answer: dict[str, Any], settings: Settings, root: Path | None) -> list[tuple[str, str]]:
    """Return (stream, group) of the pool's handlers; without a pool, of the last one or of the handlers in `root`."""
    if "consumers" in answer:
        return [(stream, group) for stream, group in answer["consumers"]]
    if root is None:
        return last_groups.read(pool_paths(settings))
    try:
        return configured_pairs(settings, root)
    except HandlerError:
        return []


def _memory(pid: int | None) -> dict[str, int | None]:
    memory: dict[str, int | None] = {"rss_bytes": None, "pss_bytes": None}
    if pid and sys.platform == "linux":
        with contextlib.suppress(OSError):  # the process has just left, or belongs to another user
            with open(f"/proc/{pid}/statm", "rb") as file:
                memory["rss_bytes"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                memory["pss_bytes"] = next(
                    (int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:")), None
                )
    elif pid:
        import psutil  # 15 ms of CPU

        with contextlib.suppress(psutil.Error, OSError):
            memory["rss_bytes"] = psutil.Process(pid).memory_info().rss
    return memory
