"""`supervisor streams` and `supervisor pending`: streams, groups and pending messages in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import TEXT, command, count_option, dumps, json_option, talk, with_settings
from supervisor.cli.tables import table_text
from supervisor.errors import EXIT_FAILED, EXIT_OK
from supervisor.text import duration_text

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded


@command(
    """\
    supervisor streams                          streams of the handlers
    supervisor streams events:user_created      one stream with all its groups
    supervisor streams --json""",
    short_help="Show streams and the backlog of each group.",
)
@click.argument("names", type=TEXT, metavar="[STREAM]...", nargs=-1)
@with_settings
@json_option
def streams(loaded: Loaded, names: tuple[str, ...], as_json: bool) -> int:
    """Show streams and the backlog of each of their groups.

    lag: entries not yet delivered. pending: delivered and not settled. oldest: age of the oldest entry that is not
    settled. dead: dead letters. kept: the retention of settled entries, from max_age and max_length.
    """
    import asyncio

    overview, complete = asyncio.run(_overview(loaded, names))
    if as_json:
        click.echo(dumps(overview, pretty=True))
    else:
        _print(overview)
    return EXIT_OK if complete else EXIT_FAILED


async def _overview(loaded: Loaded, names: tuple[str, ...]) -> tuple[list[dict[str, Any]], bool]:
    """Return the streams, and whether these are all that were meant."""
    from supervisor.cli.known_names import handled_pairs, require_stream
    from supervisor.cli.redis_client import open_redis, read_each
    from supervisor.overview import overview

    pairs = [] if names else await handled_pairs(loaded)
    async with open_redis(loaded.settings) as redis:
        for name in names:
            await require_stream(loaded, redis, name)
        if names:
            return await overview(redis, loaded.settings, names, ()), True

        async def read(name: str) -> list[dict[str, Any]]:
            return await overview(redis, loaded.settings, [name], [pair for pair in pairs if pair[0] == name])

        handled = sorted({stream for stream, _ in pairs})
        pages = await read_each(handled, read)
        return [one for page in pages for one in page], len(pages) == len(handled)


def _print(overview: list[dict[str, Any]]) -> None:
    from supervisor.cli.status import groups_table

    rows = []
    for item in overview:
        length = f"{item['length']:,}" if item["exists"] else "does not exist yet"
        rows.append([item["stream"], length, item["first_id"] or "-", item["last_id"] or "-", retention_text(item)])
    click.echo(table_text(["stream", "length", "first", "last", "kept"], rows, numbers=["length"]))
    if groups := [group for item in overview for group in item["groups"]]:
        click.echo()
        click.echo(groups_table(groups))
    elif overview:
        talk("no group reads these streams yet")
    for item in overview:
        if holder := item["retention"]["held_by"]:
            talk(f"{item['stream']}: nothing is removed until group {holder} settles its oldest entry")


def retention_text(item: dict[str, Any]) -> str:
    """Format how long settled entries are kept: `7 d 0 h`, `1,000 entries`, `all`."""
    kept = item["retention"]
    age = [duration_text(kept["max_age_s"])] if kept["max_age_s"] else []
    length = [f"{kept['max_length']:,} entries"] if kept["max_length"] else []
    return ", ".join(age + length) or "all"


@command(
    """\
    supervisor pending events:user_created email_workers
    supervisor pending events:user_created email_workers --count 5 --json""",
    short_help="List the unsettled messages of a group.",
)
@click.argument("stream", type=TEXT)
@click.argument("group", type=TEXT)
@count_option(100, 10_000, text="How many, the oldest first.")
@with_settings
@json_option
def pending(loaded: Loaded, stream: str, group: str, count: int, as_json: bool) -> None:
    """List the messages of a group that were delivered and are not settled: their consumer, and when they are due."""
    import asyncio

    messages = asyncio.run(_pending(loaded, stream, group, count))
    if as_json:
        click.echo(dumps(messages, pretty=True))
        return
    if not messages:
        talk("nothing is pending")
        return
    _print_pending(messages)
    if strangers := sorted({item["consumer"] for item in messages if item["foreign"]}):
        from supervisor.core.reclaim import foreign_text

        talk(
            f"{', '.join(strangers)} belongs to no pool: {foreign_text(loaded.settings.consumer.claim_foreign_after_s)}"
        )
    if len(messages) == count:
        talk(f"the first {count}; --count shows more")


async def _pending(loaded: Loaded, stream: str, group: str, count: int) -> list[dict[str, Any]]:
    from supervisor.broker import inspect
    from supervisor.cli.known_names import require_group
    from supervisor.cli.redis_client import open_redis
    from supervisor.errors import UsageError

    async with open_redis(loaded.settings) as redis:
        await require_group(loaded, redis, stream, group)
        try:
            return [info.as_dict() for info in await inspect.pending(redis, stream, group, count)]
        except UsageError:  # a handler's group that no pool has created yet, or one that has left dead letters only
            return []


def _print_pending(messages: list[dict[str, Any]]) -> None:
    import time

    now_ms = time.time() * 1000
    numbers = ["idle", "deliveries", "attempts", "due in"]
    rows = [
        [
            item["id"],
            item["consumer"],
            duration_text(item["idle_ms"] / 1000),
            str(item["deliveries"]),
            str(item["attempts"]),
            duration_text(max(0.0, item["next_due_ms"] - now_ms) / 1000) if item["next_due_ms"] else "-",
        ]
        for item in messages
    ]
    click.echo(table_text(["id", "consumer", *numbers], rows, numbers=numbers))
