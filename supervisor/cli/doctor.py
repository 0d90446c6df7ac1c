"""`supervisor doctor`: finds problems of this set-up and says what to do about them.

Each check is a function that yields findings. Checks change nothing, and a failed check does not stop the others.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor import compiled
from supervisor.cli.common import command, config_option, dumps, json_option, load_settings
from supervisor.errors import (
    EXIT_FAILED,
    EXIT_HANDLERS,
    EXIT_OK,
    EXIT_USAGE,
    ConfigError,
    HandlerError,
    RedisUnreachableError,
    SupervisorError,
)
from supervisor.text import counted, duration_text

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from supervisor.settings.load import Loaded
    from supervisor.settings.model import Settings

OK, WARN, FAIL = "ok", "warn", "fail"
_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}
PYTHON_MIN = (3, 11)
REDIS_MIN = (6, 2)
OPEN_FILES_MIN = 1024
OLDEST_WARN_S = 300.0
#: For its periodic work, messages that are due, schedules, and notices of changes.
KEEPER_CONNECTIONS = 5
#: Any running pool publishes what is due within a second.
OVERDUE_MAX_S = 10.0
#: The server's connections are not for one pool alone.
CONNECTIONS_SHARE_MAX = 0.8
_START_REMEDY = "`supervisor start` exits with {} until this is fixed"
_REFUSED_REMEDY = "give this user the right, or correct the key; README.md lists the rights"

#: (stream, group) of each handler.
Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `remedy` says what to do when `level` is not ok."""

    level: str
    text: str
    remedy: str = ""


@command(
    """\
    supervisor doctor
    supervisor doctor --config production.toml --json""",
    short_help="Find problems of this set-up.",
)
@config_option
@json_option
def doctor(config: Path | None, as_json: bool) -> int:
    """Check Python, configuration, handlers, Redis and this machine. Exits with 1 when something fails."""
    findings = []
    for finding in _all(config):
        findings.append(finding)
        if not as_json:
            click.echo(f"{click.style(f'[{finding.level}]', fg=_COLOURS[finding.level])} {finding.text}")
            if finding.remedy:
                click.echo(f"       {finding.remedy}")
    if as_json:
        click.echo(dumps([asdict(finding) for finding in findings], pretty=True))
    return EXIT_FAILED if any(finding.level == FAIL for finding in findings) else EXIT_OK


def _all(config: Path | None) -> Iterator[Finding]:
    import asyncio

    from supervisor.cli.config import unusable

    yield from _python()
    try:
        loaded = load_settings(config)
    except ConfigError as error:
        yield Finding(FAIL, str(error), "`supervisor config show` lists all keys")
        return
    yield Finding(OK, f"configuration: {loaded.path or 'no config.toml, the defaults'}")
    wrong = [str(error) for error in unusable(loaded.settings)]
    yield from (Finding(FAIL, text, _START_REMEDY.format(EXIT_USAGE)) for text in wrong)
    yield from _machine(loaded.settings)
    pairs: Pairs = []
    yield from _handlers(loaded, pairs)
    yield from (finding for finding in asyncio.run(_redis(loaded.settings, pairs)) if finding.text not in wrong)


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info < PYTHON_MIN:
        yield Finding(FAIL, f"Python {version}", f"Python {'.'.join(map(str, PYTHON_MIN))} or newer is needed")
    else:
        yield Finding(OK, f"Python {version} on {platform.system()}")
    if find_spec("hiredis") is None:
        yield Finding(FAIL, "hiredis is not installed", 'pip install "redis[hiredis]"')
    else:
        yield Finding(OK, "hiredis is installed")
    if compiled.entries is None:
        remedy = f"unset {compiled.VARIABLE}, or install again with a C compiler: a worker uses more CPU without it"
        yield Finding(WARN, f"message path: {compiled.describe()}", remedy)
    else:
        yield Finding(OK, f"message path: {compiled.describe()}")
    ours = Path(__file__).parents[1]
    others = [Path(entry) / "supervisor" / "supervisord.py" for entry in sys.path]
    if clash := [path for path in others if path.is_file()]:
        yield Finding(
            FAIL,
            f"supervisord is installed too, at {clash[0].parent}; this is {ours}: both have the same package name",
            "give each its own environment: python -m venv .venv",
        )
    else:
        yield Finding(OK, "no supervisord in this environment")


def _machine(settings: Settings) -> Iterator[Finding]:
    from supervisor.settings.paths import pool_paths
    from supervisor.unix_path import has_socket_path

    paths = pool_paths(settings)
    existing = next(path for path in (paths.state_dir, *paths.state_dir.parents) if os.path.exists(path))
    if os.access(existing, os.W_OK | os.X_OK) and os.path.isdir(existing):
        yield Finding(OK, f"state_dir {paths.state_dir} can be written")
    else:
        yield Finding(FAIL, f"state_dir {paths.state_dir} can't be written", "set state_dir to a folder of this user")
    if has_socket_path(paths.control):
        yield Finding(OK, f"control socket {paths.control}")
    else:
        yield Finding(
            FAIL, f"control socket {paths.control}: too long for a socket here", "set state_dir to a short path"
        )
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_MIN:
        yield Finding(WARN, f"at most {soft} open files (hard limit {hard})", f"ulimit -n {OPEN_FILES_MIN}")
    else:
        yield Finding(OK, "open files: " + ("unlimited" if soft == resource.RLIM_INFINITY else f"up to {soft:,}"))


def _handlers(loaded: Loaded, pairs: Pairs) -> Iterator[Finding]:
    from supervisor.arbiter.preload import examine
    from supervisor.cli.api import check_routers
    from supervisor.settings.unused_overrides import unused_overrides

    try:
        handlers = examine(loaded)
    except HandlerError as error:
        yield Finding(FAIL, f"handlers: {error}", _START_REMEDY.format(EXIT_HANDLERS))
        return
    pairs += [(spec.stream, spec.group) for spec in handlers.specs]
    listed = ", ".join(f"{stream} / {group}" for stream, group in pairs)
    yield Finding(OK, f"handlers: {len(pairs)} ({listed})")
    if handlers.reason:
        yield Finding(WARN, f"handlers are imported in the workers: {handlers.reason}", handlers.cost)
    for line in unused_overrides(loaded, pairs):
        yield Finding(WARN, line, "correct the name, or remove the override")
    names = sorted(
        path.stem for path in loaded.root.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    )
    for name in sys.stdlib_module_names & set(names):
        yield Finding(
            WARN, f"{loaded.root / name}: `import {name}` means the standard library's", "give it another name"
        )
    try:
        check_routers(loaded)
    except HandlerError as error:
        yield Finding(FAIL, f"routers: {error}", _START_REMEDY.format(EXIT_HANDLERS))


async def _redis(settings: Settings, pairs: Pairs) -> list[Finding]:
    from redis.exceptions import ResponseError

    from supervisor.cli.redis_client import open_redis, refused

    findings: list[Finding] = []
    try:
        async with open_redis(settings) as redis:
            for check in _REDIS_CHECKS:
                try:
                    findings += [finding async for finding in check(settings, redis, pairs)]
                except ResponseError as error:  # a right that this user lacks, or a key that is not a stream
                    finding = Finding(FAIL, str(refused(settings, error)), _REFUSED_REMEDY)
                    findings += [finding] if finding not in findings else []
    except SupervisorError as error:
        if isinstance(error, RedisUnreachableError) and not settings.redis.url and not findings:
            return [_embedded()]
        findings.append(Finding(FAIL, str(error), "check redis.url, the network, and that the server runs"))
    return findings


def _embedded() -> Finding:
    from supervisor.arbiter.embedded_redis import find_binary

    try:
        binary = find_binary()
    except SupervisorError as error:
        return Finding(FAIL, f"no redis.url, and no server to embed: {error}", "set redis.url or install redis-server")
    return Finding(OK, f"Redis: `supervisor start` will start {binary}")


async def _server(settings: Settings, redis: Redis, _pairs: Pairs) -> AsyncIterator[Finding]:
    """Check the server's version and what a crash of it may cost."""
    from supervisor.broker.connect import describe
    from supervisor.settings.masking import masked
    from supervisor.settings.paths import redis_url

    server = await describe(redis)
    where = f"{server.version} at {masked(redis_url(settings))}"
    if _version(server.version) < REDIS_MIN:
        yield Finding(FAIL, where, f"Redis {'.'.join(map(str, REDIS_MIN))} or newer is needed")
    else:
        yield Finding(OK, where)
    if server.durability in ("none", "rdb"):
        cost = "everything" if server.durability == "none" else "what came after the last snapshot"
        yield Finding(WARN, f"durability {server.durability}: a crash of Redis loses {cost}", "appendonly yes")
    else:
        yield Finding(OK, f"durability {server.durability}")


async def _capacity(settings: Settings, redis: Redis, pairs: Pairs) -> AsyncIterator[Finding]:
    """Check what the server does when its memory is full, and how many connections it takes."""
    info: dict[str, Any] = await redis.info("memory")
    policy, limit = info.get("maxmemory_policy", "noeviction"), info.get("maxmemory", 0)
    if policy != "noeviction":
        level = FAIL if limit else WARN
        yield Finding(level, f"maxmemory-policy {policy}: a full Redis drops streams", "maxmemory-policy noeviction")
    else:
        yield Finding(OK, "maxmemory-policy noeviction")
    yield _connections(settings, await redis.info("clients"), len(pairs))


def _connections(settings: Settings, clients: dict[str, Any], handlers: int) -> Finding:
    """Compare the connections that a pool opens with what the server allows."""
    workers = max(settings.pool.workers, settings.pool.workers_max or 0)
    needed, limit = workers * (handlers + 1) + KEEPER_CONNECTIONS, int(clients.get("maxclients", 0))
    each = f"{counted(workers, 'worker')} × ({counted(handlers, 'handler')} + 1)"
    text = f"connections to Redis: {needed:,} ({each}, and the keeper's)"
    text += f" of maxclients {limit:,}" if limit else ""
    if limit and needed > limit * CONNECTIONS_SHARE_MAX:
        return Finding(WARN, text, "raise maxclients, or run fewer workers")
    return Finding(OK, text)


async def _groups(_settings: Settings, redis: Redis, pairs: Pairs) -> AsyncIterator[Finding]:
    """Check the backlog and the dead letters of each group."""
    from supervisor.broker.inspect import groups
    from supervisor.cli.status import dead_command, trimmed_text
    from supervisor.cli.tables import lag_text

    for info in await groups(redis, pairs):
        name = f"{info.stream} / {info.group}"
        text = f"{name}: lag {lag_text(info.lag, info.lag_at_least)}, pending {info.pending:,}, dead {info.dead:,}"
        if not info.exists:
            yield Finding(OK, f"{name}: the group is created at the first start")
        elif (info.oldest_s or 0) > OLDEST_WARN_S:
            yield Finding(
                WARN,
                f"{text}, the oldest has waited for {duration_text(info.oldest_s)}",
                "`supervisor pending` shows why",
            )
        elif info.dead:
            yield Finding(WARN, text, f"to list them: {dead_command(info.stream, info.group)}")
        else:
            yield Finding(OK, text)
        if info.trimmed_unread:
            remedy = (
                "give XADD of the producers a larger MAXLEN or none; max_length of this pool removes nothing unread"
            )
            yield Finding(WARN, trimmed_text(info.as_dict()), remedy)


async def _foreign(settings: Settings, redis: Redis, pairs: Pairs) -> AsyncIterator[Finding]:
    """Find messages that a consumer of another program holds."""
    from supervisor.broker.inspect import held_by_foreign
    from supervisor.core.reclaim import foreign_text

    claim_after_s = settings.consumer.claim_foreign_after_s
    for stream, group in pairs:
        for consumer, count in (await held_by_foreign(redis, stream, group)).items():
            yield Finding(
                WARN,
                f"{stream} / {group}: {counted(count, 'message')} held by {consumer}, which belongs to no pool",
                foreign_text(claim_after_s),
            )


async def _held(settings: Settings, redis: Redis, pairs: Pairs) -> AsyncIterator[Finding]:
    """Find streams that grow despite their retention, because a group has not settled its entries."""
    from supervisor.core.retention import retention_of
    from supervisor.overview import overview

    names = sorted({stream for stream, _ in pairs if retention_of(settings, stream)})
    for found in await overview(redis, settings, names, ()):
        if holder := found["retention"]["held_by"]:
            yield Finding(
                WARN,
                f"{found['stream']}: {holder} has not settled entries that max_age or max_length would remove",
                f"to remove the group: {shlex.join(['redis-cli', 'XGROUP', 'DESTROY', found['stream'], holder])}",
            )


async def _later(_settings: Settings, redis: Redis, pairs: Pairs) -> AsyncIterator[Finding]:
    """Find messages for later that nobody publishes."""
    from supervisor.broker.later_set import counts, noted_streams

    for one in await counts(redis, sorted({*(stream for stream, _ in pairs), *await noted_streams(redis)})):
        command = shlex.join(["supervisor", "later", "list", one.stream])
        if one.malformed:
            yield Finding(WARN, f"{one.stream}: {one.malformed:,} malformed messages for later", command)
        if one.overdue_s is not None and one.overdue_s > OVERDUE_MAX_S:
            late = duration_text(one.overdue_s)
            yield Finding(WARN, f"{one.stream}: a message for later has been due for {late}", "start a pool")


#: Each gets the settings, a client, and (stream, group) of each handler.
_REDIS_CHECKS = (_server, _capacity, _groups, _held, _later, _foreign)


def _version(text: str) -> tuple[int, ...]:
    number = text.rpartition(" ")[2]
    return tuple(int(part) for part in number.split(".") if part.isdigit())
