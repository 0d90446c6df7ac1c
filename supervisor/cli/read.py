"""`supervisor read`: prints the history of a stream, page by page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import TEXT, IdBound, Value, command, count_option, dumps, json_lines_option, with_settings
from supervisor.text import decoded

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded

PAGE = 1_000
BOUND = IdBound(
    "an entry id such as 0 or 1764000000000-0, or (ID for after it; `supervisor tail` follows a stream", "-+", "("
)


@command(
    """\
    supervisor read events:user_created                       all of it
    supervisor read events:user_created --from 0 --count 10   the first ten
    supervisor read events:user_created --reverse --count 1   the last one
    supervisor read events:user_created --from 1764000000000 --json""",
    short_help="Print a stream's entries.",
)
@click.argument("stream", type=TEXT)
@click.option(
    "--from", "start", type=Value(BOUND), default="-", metavar="ID", help="The first id, or Unix ms; '(ID' excludes ID."
)
@click.option("--to", "end", type=Value(BOUND), default="+", metavar="ID", help="The last id, or Unix ms.")
@count_option(text="At most N entries.  [default: all]")
@click.option("--reverse", is_flag=True, help="Newest first.")
@with_settings
@json_lines_option
def read(loaded: Loaded, stream: str, start: str, end: str, count: int | None, reverse: bool, as_json: bool) -> None:
    """Print the entries of a stream, handled or not. With --json one object on each line."""
    import asyncio

    asyncio.run(_read(loaded, stream, (start, end), count, reverse=reverse, as_json=as_json))


async def _read(
    loaded: Loaded, stream: str, span: tuple[str, str], count: int | None, *, reverse: bool, as_json: bool
) -> None:
    from supervisor.cli.known_names import require_stream
    from supervisor.cli.redis_client import open_redis

    low, high = span
    left = count
    async with open_redis(loaded.settings) as redis:
        while left is None or left > 0:
            wanted = PAGE if left is None else min(PAGE, left)
            bounds = ("XREVRANGE", stream, high, low) if reverse else ("XRANGE", stream, low, high)
            page = await redis.execute_command(*bounds, "COUNT", wanted)
            print_entries(page, as_json)
            if not page and left == count:
                await require_stream(loaded, redis, stream)
            if len(page) < wanted:
                return
            left = None if left is None else left - len(page)
            after = f"({page[-1][0].decode()}"
            low, high = (low, after) if reverse else (after, high)


def print_entries(entries: list[Any], as_json: bool) -> None:
    """Print entries as redis-py returns them, one on each line."""
    lines = []
    for entry_id, flat in entries:
        fields = {decoded(name): decoded(value) for name, value in flat.items()}
        if as_json:
            lines.append(dumps({"id": entry_id.decode(), "fields": fields}))
        else:
            lines.append(f"{entry_id.decode()}  " + " ".join(f"{_word(k)}={_word(v)}" for k, v in fields.items()))
    if lines:
        click.echo("\n".join(lines))


def _word(text: str) -> str:
    """Return the text, in quotes if it has blanks, quotes or control characters."""
    return text if re.fullmatch(r"[^\s\"'\\]+", text) and text.isprintable() else dumps(text)
