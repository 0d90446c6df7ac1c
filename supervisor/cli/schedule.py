"""`supervisor schedule`: list, run, pause and resume the schedules of config.toml."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import CONTEXT, TEXT, ExamplesGroup, command, dumps, json_option, talk, with_settings
from supervisor.errors import UsageError
from supervisor.text import did_you_mean, duration_text

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from supervisor.core.schedule import Schedule
    from supervisor.settings.load import Loaded


@click.group(
    cls=ExamplesGroup,
    context_settings=CONTEXT,
    short_help="List, run, pause and resume schedules.",
    examples="""\
    supervisor schedule list
    supervisor schedule run nightly
    supervisor schedule pause nightly
    supervisor schedule resume nightly""",
)
def schedule() -> None:
    """Schedules: messages that running pools publish at the times that config.toml gives."""


@command(
    """\
    supervisor schedule list
    supervisor schedule list --json""",
    short_help="List schedules and their next times.",
)
@with_settings
@json_option
def list_(loaded: Loaded, as_json: bool) -> None:
    """List the schedules of config.toml with their last and next ticks."""
    import asyncio

    schedules = asyncio.run(_overview(loaded))
    if as_json:
        click.echo(dumps(schedules, pretty=True))
    elif not schedules:
        talk('config.toml has no [schedule."name"]')
    else:
        from supervisor.cli.tables import table_text

        columns = ["name", "stream", "when", "last", "next"]
        click.echo(table_text(columns, list(map(_row, schedules)), whole=["name"], drop=("last",)))


async def _overview(loaded: Loaded) -> list[dict[str, Any]]:
    from supervisor.broker.schedules import overview
    from supervisor.cli.redis_client import open_redis
    from supervisor.core.schedule import schedules_of

    async with open_redis(loaded.settings) as redis:
        return await overview(redis, schedules_of(loaded.settings))


def _row(one: dict[str, Any]) -> list[str]:
    when = f"{one['cron']} {one['timezone']}" if one["cron"] else f"every {_interval(one['every_s'])}"
    next_ = f"paused since {one['paused_since']}" if one["paused_since"] else one["next"][0]
    return [one["name"], one["stream"], when, one["last"] or "-", next_]


def _interval(seconds: float) -> str:
    """Return `15 m` for 900, and `1 h 30 m` for 5400."""
    return re.sub(r" 0 [hms]$", "", duration_text(seconds).replace(".0 s", " s"))


def _change(
    verb: str, short: str, text: str, change: Callable[..., Awaitable[tuple[str, dict[str, str]]]]
) -> click.Command:
    """Make a command that changes one schedule. `change` returns what to print, as text and for JSON."""

    @click.argument("name", type=TEXT)
    @with_settings
    @json_option
    def changed(loaded: Loaded, name: str, as_json: bool) -> None:
        import asyncio

        text, outcome = asyncio.run(_change_one(loaded, name, change))
        click.echo(dumps({"name": name, **outcome}, pretty=True) if as_json else text)

    changed.__doc__ = text
    examples = f"""\
    supervisor schedule {verb} nightly
    supervisor schedule {verb} nightly --json"""
    return command(examples, short_help=short, name=verb)(changed)


async def _change_one(
    loaded: Loaded, name: str, change: Callable[..., Awaitable[tuple[str, dict[str, str]]]]
) -> tuple[str, dict[str, str]]:
    from supervisor.cli.redis_client import open_redis
    from supervisor.core.schedule import schedules_of

    schedules = {one.name: one for one in schedules_of(loaded.settings)}
    if name not in schedules:
        near = did_you_mean(name, schedules) or (f" (there are: {', '.join(schedules)})" if schedules else "")
        raise UsageError(f"config.toml has no schedule {name!r}{near}")
    async with open_redis(loaded.settings) as redis:
        return await change(redis, schedules[name])


async def _run(redis: Redis, one: Schedule) -> tuple[str, dict[str, str]]:
    from supervisor.broker.schedules import run_now

    entry = await run_now(redis, one)
    return entry, {"outcome": "published", "stream": one.stream, "id": entry}


async def _pause(redis: Redis, one: Schedule) -> tuple[str, dict[str, str]]:
    from supervisor.broker.schedules import pause

    state = "is paused" if await pause(redis, one) else "was paused already"
    return f"{one.name} {state}", {"outcome": state}


async def _resume(redis: Redis, one: Schedule) -> tuple[str, dict[str, str]]:
    from supervisor.broker.schedules import resume

    state = "goes on" if await resume(redis, one) else "was not paused"
    return f"{one.name} {state}", {"outcome": state}


RUN = """Publish the message of a schedule now, besides its ticks, and print its id. A paused schedule stays paused."""
PAUSE = """Stop the ticks of a schedule in all pools, until `supervisor schedule resume`."""
RESUME = """Let a paused schedule go on with its next tick. Ticks during the pause are not published."""
schedule.add_command(list_, "list")
schedule.add_command(_change("run", "Publish the message of a schedule now.", RUN, _run))
schedule.add_command(_change("pause", "Stop the ticks in all pools until `resume`.", PAUSE, _pause))
schedule.add_command(_change("resume", "Go on with the next tick.", RESUME, _resume))
