"""`supervisor later`: list, cancel and run the messages that are published later."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from math import isinf
from typing import TYPE_CHECKING

import click

from supervisor.cli.common import (
    CONTEXT,
    TEXT,
    ExamplesGroup,
    command,
    count_option,
    dumps,
    json_lines_option,
    report,
    talk,
    with_settings,
)
from supervisor.errors import EXIT_FAILED, EXIT_OK
from supervisor.keys import later_key
from supervisor.text import counted, did_you_mean, duration_text

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from supervisor.broker.later_set import Waiting
    from supervisor.settings.load import Loaded

#: `supervisor later list --json` prints the whole message.
FIELDS_CHARACTERS = 60


@click.group(
    cls=ExamplesGroup,
    context_settings=CONTEXT,
    short_help="List, cancel and run messages that are published later.",
    examples="""\
    supervisor publish reports kind=weekly --after 30m
    supervisor later list
    supervisor later cancel reports 3f0c8a52b1d94e6f7a0b1c2d
    supervisor later run reports 3f0c8a52b1d94e6f7a0b1c2d""",
)
def later() -> None:
    """Messages that are published later. A running pool moves them to their streams when they are due."""


@command(
    """\
    supervisor later list
    supervisor later list reports --json""",
    short_help="List what is to be published later.",
)
@click.argument("streams", type=TEXT, metavar="[STREAM]...", nargs=-1)
@count_option(100, text="How many of each stream, the first due first.")
@with_settings
@json_lines_option
def list_(loaded: Loaded, streams: tuple[str, ...], count: int, as_json: bool) -> None:
    """List what is to be published later, of all streams or of some. With --json one object on each line."""
    import asyncio

    asyncio.run(_list(loaded, streams, count, as_json=as_json))


async def _list(loaded: Loaded, streams: tuple[str, ...], count: int, *, as_json: bool) -> None:
    from supervisor.broker.later_set import counts, listed, noted_streams
    from supervisor.cli.known_names import require_stream
    from supervisor.cli.redis_client import open_redis
    from supervisor.cli.tables import table_text

    async with open_redis(loaded.settings) as redis:
        totals = await counts(redis, streams or await _streams(loaded, redis))
        if empty := set(streams) - {total.stream for total in totals}:
            for stream in sorted(empty - (await noted_streams(redis)).keys()):
                await require_stream(loaded, redis, stream)
        shown = [waiting for total in totals async for waiting in listed(redis, total.stream, count)]
    if as_json:
        for waiting in shown:
            click.echo(dumps(waiting.as_dict()))
        return
    if not shown:
        talk("nothing is to be published later")
        return
    click.echo(table_text(["due", "stream", "id", "message"], list(map(_row, shown)), whole=["due", "id"]))
    if (total := sum(one.waiting + one.malformed for one in totals)) > len(shown):
        talk(f"the first {len(shown):,} of {total:,}; --count shows more")


async def _streams(loaded: Loaded, redis: Redis) -> list[str]:
    """Return the streams that may have messages for later: those of the handlers, and those that were noted."""
    from supervisor.broker.later_set import noted_streams
    from supervisor.cli.known_names import handled_pairs
    from supervisor.errors import HandlerError

    try:
        handled = {stream for stream, _ in await handled_pairs(loaded)}
    except HandlerError:  # what waits in Redis needs no handlers
        handled = set()
    return sorted({*handled, *await noted_streams(redis)})


def _row(waiting: Waiting) -> list[str]:
    from supervisor.publisher import TRACE_FIELDS

    left_s = waiting.due_ms / 1000 - time.time()
    due = "never" if isinf(left_s) else f"in {duration_text(left_s)}" if left_s > 0 else f"{duration_text(-left_s)} ago"
    if waiting.message is None:
        return [due, waiting.stream, waiting.id, f"malformed: {waiting.error}"]
    fields = sorted(waiting.as_dict()["fields"].items(), key=lambda field: field[0] in TRACE_FIELDS)  # those come last
    text = " ".join(f"{name}={value}" for name, value in fields)
    return [due, waiting.stream, waiting.id, text[:FIELDS_CHARACTERS]]


def _change(verb: str, short: str, text: str, change: Callable[..., Awaitable[dict[str, str]]]) -> click.Command:
    """Make `cancel` or `run`: they take the same arguments. `change` returns the outcome, empty if it failed."""

    @click.argument("stream", type=TEXT)
    @click.argument("ids", type=TEXT, nargs=-1, required=True, metavar="ID...")
    @with_settings
    @json_lines_option
    def changed(loaded: Loaded, stream: str, ids: tuple[str, ...], as_json: bool) -> int:
        import asyncio

        return asyncio.run(_change_all(loaded, stream, ids, change, as_json=as_json))

    changed.__doc__ = text
    examples = f"""\
    supervisor later {verb} reports 3f0c8a52b1d94e6f7a0b1c2d
    supervisor later {verb} reports weekly-5 weekly-6 --json"""
    return command(examples, short_help=short, name=verb)(changed)


async def _change_all(
    loaded: Loaded,
    stream: str,
    ids: tuple[str, ...],
    change: Callable[..., Awaitable[dict[str, str]]],
    *,
    as_json: bool,
) -> int:
    from supervisor.broker.later_set import find
    from supervisor.cli.redis_client import open_redis

    missing = 0
    async with open_redis(loaded.settings) as redis:
        for message_id in ids:
            waiting = await find(redis, stream, message_id)
            done = await change(redis, waiting) if waiting is not None else {}
            missing += not done
            if not done:
                done = await _why_not(loaded, redis, stream, message_id, waiting)
                talk(f"{message_id}: {done['error']}")
            elif not as_json:
                report(done.get("entry_id", message_id))
            if as_json:
                report(dumps({"stream": stream, "id": message_id, **done}))
    if missing and len(ids) > 1:
        talk(f"{counted(len(ids) - missing, 'message')} of {len(ids)}")
    return EXIT_FAILED if missing else EXIT_OK


async def _why_not(
    loaded: Loaded, redis: Redis, stream: str, message_id: str, waiting: Waiting | None
) -> dict[str, str]:
    """Return the outcome for a message that could not be changed."""
    from supervisor.broker.origins import cancelled_ms, entry_of_later

    if waiting is not None and waiting.message is None:
        return {"outcome": "malformed", "error": f"malformed: {waiting.error}"}
    if entry := await entry_of_later(redis, stream, message_id):
        return {"outcome": "not there", "error": f"not there: it was published as {entry}", "entry_id": entry}
    if await cancelled_ms(redis, stream, message_id) is not None:
        return {"outcome": "not there", "error": "not there: it was cancelled"}
    near = did_you_mean(stream, set(await _streams(loaded, redis)) - {stream})
    if near and not await redis.exists(later_key(stream)):
        return {"outcome": "not there", "error": f"nothing waits for the stream {stream!r}{near}"}
    return {"outcome": "not there", "error": "not there: it was published or cancelled long ago, or never existed"}


async def _cancel(redis: Redis, waiting: Waiting) -> dict[str, str]:
    from supervisor.broker.later_set import cancel

    return {"outcome": "cancelled"} if await cancel(redis, waiting) else {}


async def _run(redis: Redis, waiting: Waiting) -> dict[str, str]:
    from supervisor.broker.later_set import run_now

    entry = await run_now(redis, waiting)
    return {"outcome": "published", "entry_id": entry} if entry else {}


CANCEL = """Cancel messages that are published later, and print their ids.

ID is what `supervisor publish --after` printed, and what `supervisor later list` shows."""
RUN = """Publish messages at once, and print their ids in the stream.

ID is what `supervisor publish --after` printed, and what `supervisor later list` shows."""
later.add_command(list_, "list")
later.add_command(_change("cancel", "Cancel messages.", CANCEL, _cancel))
later.add_command(_change("run", "Publish messages at once.", RUN, _run))
