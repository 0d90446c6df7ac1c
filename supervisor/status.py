"""Collects the state of a pool and its groups into one document, for `supervisor status` and the HTTP service.

Processes come from the arbiter, groups from Redis. It starts nothing and changes nothing.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from supervisor.broker import inspect
from supervisor.broker.connect import client, describe
from supervisor.broker.redis_errors import REDIS_FAULTS
from supervisor.control.client import request
from supervisor.errors import HandlerError, NotRunningError
from supervisor.settings.masking import masked
from supervisor.settings.model import Settings
from supervisor.settings.paths import pool_paths, redis_url

#: A Redis that does not answer within this time is shown as unreachable.
REDIS_LIMIT_S = 2.0


async def collect(settings: Settings, root: Path | None = None) -> dict[str, Any]:
    """The document of `supervisor status --json`. Never raises for a pool or a Redis that is down.

    Where no pool runs here, the groups are those of the handlers importable from `root`, if one is given.
    """
    told = await asyncio.to_thread(_ask_arbiter, settings)
    url = told.get("redis_url") or redis_url(settings)
    redis = client(url, timeout_s=REDIS_LIMIT_S, connect_timeout_s=REDIS_LIMIT_S)
    server: dict[str, Any] = {"url": masked(url), "version": None, "durability": None}
    groups: list[dict[str, Any]] = []
    try:
        described = await describe(redis)
        server |= {"version": described.version, "durability": described.durability}
        groups = [info.as_dict() for info in await inspect.groups(redis, _pairs(told, settings, root))]
    except REDIS_FAULTS as error:
        server["error"] = str(error) or type(error).__name__
    finally:
        await redis.aclose()
    workers = await with_memory(told.pop("workers", []))
    state = "degraded" if "error" in server and told["state"] == "healthy" else told["state"]
    if "error" in server and told["pid"]:
        told["degraded_reasons"] = [*told.get("degraded_reasons", []), f"Redis can't be used: {server['error']}"]
    head = {"state": state, "pid": told["pid"], "uptime_s": told["uptime_s"], "redis": server}
    rest = {key: value for key, value in told.items() if key not in ("redis", "redis_url", "consumers")}
    return {**head, "workers": workers, "groups": groups, **{k: v for k, v in rest.items() if k not in head}}


def configured_pairs(settings: Settings, root: Path) -> list[tuple[str, str]]:
    """Return (stream, group) of each handler; imports the handlers. Raises HandlerError."""
    from supervisor.handling.loader import load_handlers

    return [(spec.stream, spec.group) for spec in load_handlers(settings, root)]


async def with_memory(workers: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the resident and proportional memory of each worker, None where the system does not report it.

    The kernel walks all pages of a process for it and may block that process meanwhile. So it is read only for a
    reader of the status, in a thread, and never by the arbiter.
    """

    def look() -> list[dict[str, Any]]:
        return [{**worker, **_memory(worker.get("pid"))} for worker in workers]

    return await asyncio.to_thread(look)


def _ask_arbiter(settings: Settings) -> dict[str, Any]:
    try:
        return request(pool_paths(settings), "status")
    except NotRunningError as error:
        return {"state": "down", "pid": None, "uptime_s": None, "reason": str(error)}


def _pairs(told: dict[str, Any], settings: Settings, root: Path | None) -> list[tuple[str, str]]:
    if "consumers" in told:
        return [(stream, group) for stream, group in told["consumers"]]
    if root is None:
        return []
    try:
        return configured_pairs(settings, root)
    except HandlerError:
        return []


def _memory(pid: int | None) -> dict[str, int | None]:
    found: dict[str, int | None] = {"rss_bytes": None, "pss_bytes": None}
    if pid and sys.platform == "linux":
        with contextlib.suppress(OSError):  # the process has just left, or belongs to another user
            with open(f"/proc/{pid}/statm", "rb") as file:
                found["rss_bytes"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                found["pss_bytes"] = next(
                    (int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:")), None
                )
    elif pid:
        import psutil  # 15 ms of CPU

        with contextlib.suppress(psutil.Error, OSError):
            found["rss_bytes"] = psutil.Process(pid).memory_info().rss
    return found
