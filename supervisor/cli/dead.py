"""`supervisor dead`: list, show, replay and drop dead letters."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import (
    CONTEXT,
    ID,
    SECONDS,
    TEXT,
    ExamplesGroup,
    command,
    count_option,
    dumps,
    json_lines_option,
    json_option,
    talk,
    with_settings,
)
from supervisor.core.dead_letter import Filter
from supervisor.errors import EXIT_FAILED, EXIT_OK, UsageError
from supervisor.text import counted, printable

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded

#: Control characters that `show` prints.
KEPT = "\n\t"


@click.group(
    cls=ExamplesGroup,
    context_settings=CONTEXT,
    short_help="List, show, replay and drop dead letters.",
    examples="""\
    supervisor dead list
    supervisor dead list events:user_created email_workers --reason Timeout
    supervisor dead show events:user_created email_workers 1764000000000-0
    supervisor dead replay events:user_created email_workers --older 3600
    supervisor dead drop events:user_created email_workers 1764000000000-0""",
)
def dead() -> None:
    """Dead letters: messages that were given up, and why. Give them to their group again, or remove them."""


def _filtered(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that select dead letters; the function gets them as `wanted`."""

    @click.option("--reason", type=TEXT, metavar="R", help="With the text R in the reason.")
    @click.option("--handler", type=TEXT, metavar="H", help="Of handlers with H in their name.")
    @click.option("--text", type=TEXT, metavar="T", help="With the text T in a field, the id or the error.")
    @click.option("--older", "older_s", type=SECONDS, default=0, metavar="S", help="Dead for S (60, 7d) or more.")
    @functools.wraps(function)
    def with_filter(reason: str | None, handler: str | None, text: str | None, older_s: float, **others: Any) -> Any:
        wanted = Filter(reason or "", handler or "", text or "", int(older_s * 1000))
        return function(wanted=wanted, **others)

    return with_filter


@command(
    """\
    supervisor dead list
    supervisor dead list events:user_created email_workers --text ada@example.com""",
    short_help="List dead letters of one group or of all handlers.",
)
@click.argument("stream", type=TEXT, required=False)
@click.argument("group", type=TEXT, required=False)
@_filtered
@count_option(100, text="How many, the oldest first.")
@with_settings
@json_lines_option
def list_(loaded: Loaded, stream: str | None, group: str | None, wanted: Filter, count: int, as_json: bool) -> None:
    """List dead letters of one group, of a stream's groups, or of all handlers. With --json one object on each line."""
    import asyncio

    from supervisor.cli.dead_operations import list_letters

    asyncio.run(list_letters(loaded, (stream, group), wanted, count, as_json=as_json))


@command("supervisor dead show events:user_created email_workers 1764000000000-0")
@click.argument("stream", type=TEXT)
@click.argument("group", type=TEXT)
@click.argument("id_", type=ID, metavar="ID")
@with_settings
@json_option
def show(loaded: Loaded, stream: str, group: str, id_: str, as_json: bool) -> int:
    """Show one dead letter with its traceback. ID is the letter's or the message's."""
    import asyncio

    from supervisor.cli.dead_operations import named_letters

    [letter] = asyncio.run(named_letters(loaded, stream, group, [id_]))
    if as_json:
        click.echo(dumps(letter.as_dict(), pretty=True))
        return EXIT_OK
    for name, value in letter.as_dict().items():
        if name == "dead_at_ms":
            click.echo(f"dead_at     {_moment(value) if value else '-'}")
        elif name not in ("fields", "traceback", "stack") and value not in ("", None):
            click.echo(f"{name:<10}  {printable(str(value), keep=KEPT)}")
    fields = (
        f"  {printable(field, keep=KEPT)} = {printable(text, keep=KEPT)}" for field, text in letter.fields.items()
    )
    click.echo("\n".join(["fields", *fields]))
    if where := letter.traceback or letter.stack:
        click.echo(f"\n{printable(where.rstrip(), keep=KEPT)}")
    return EXIT_OK


def _change(verb: str, help_text: str, short: str) -> click.Command:
    """Make `replay` or `drop`: they select letters in the same way and ask for confirmation."""

    @click.argument("stream", type=TEXT)
    @click.argument("group", type=TEXT)
    @click.argument("ids", type=ID, nargs=-1, metavar="[ID]...")
    @_filtered
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @with_settings
    @json_lines_option
    def change(
        loaded: Loaded, stream: str, group: str, ids: tuple[str, ...], wanted: Filter, yes: bool, as_json: bool
    ) -> int:
        import asyncio

        from supervisor.cli.dead_operations import Work, carry_out, choose

        if ids and not wanted.empty:
            raise UsageError("give either ids or --reason, --handler, --text and --older, not both")
        work: Work = asyncio.run(choose(loaded, stream, group, ids, wanted))
        if not work.count:
            talk(f"no dead letter to {verb}")
            return EXIT_OK
        talk(f"{counted(work.count, 'dead letter')} of {stream} {group}")
        if not yes and not _agreed(verb, work.count):
            return EXIT_FAILED
        return asyncio.run(carry_out(loaded, verb, work, as_json=as_json))

    change.__doc__ = help_text
    examples = f"""\
    supervisor dead {verb} events:user_created email_workers 1764000000000-0
    supervisor dead {verb} events:user_created email_workers --reason Timeout"""
    return command(examples, short_help=short, name=verb)(change)


def _agreed(verb: str, count: int) -> bool:
    """Ask for confirmation. Raises UsageError when stdin is not a terminal."""
    if not sys.stdin.isatty():
        raise UsageError(f"stdin is not a terminal, so there is no one to ask; --yes runs {verb} without a question")
    return click.confirm(f"{verb.capitalize()} {'it' if count == 1 else 'them'}?", err=True)


def _moment(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(ms / 1000))


dead.add_command(list_, "list")
dead.add_command(show)
REPLAY = """Give messages to the group that gave them up, as if they were new.

Without IDs and options, all dead letters of the group. ID is the letter's or the message's."""
REMOVE = """Remove dead letters for good.

Without IDs and options, all dead letters of the group. ID is the letter's or the message's."""
dead.add_command(_change("replay", REPLAY, "Give messages to their group again."))
dead.add_command(_change("drop", REMOVE, "Remove dead letters for good."))
