"""`supervisor dead`: the messages that were given up: list, show, replay, drop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import (
    CONTEXT,
    Examples,
    command,
    config_option,
    dumps,
    json_option,
    load_settings,
    redis_option,
    talk,
)
from supervisor.errors import EXIT_FAILED, EXIT_OK, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from redis.asyncio import Redis

    from supervisor.broker.dead import Filter, Letter
    from supervisor.settings.load import Loaded

REASON_CHARACTERS = 60


class DeadGroup(Examples, click.Group):
    """A group of commands whose help begins with examples."""


@click.group(
    cls=DeadGroup,
    context_settings=CONTEXT,
    short_help="The messages that were given up: list, replay, drop.",
    examples="""\
    supervisor dead list
    supervisor dead list events:user_created email_workers --reason Timeout --json
    supervisor dead show events:user_created email_workers 1764000000000-0
    supervisor dead replay events:user_created email_workers --handler send_welcome_email --yes
    supervisor dead drop events:user_created email_workers 1764000000000-0""",
)
def dead() -> None:
    """Dead letters: what was given up and why; put it back to its group, or remove it."""


def _filtered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose letters."""
    for option in (
        click.option("--older", "older_s", type=click.FloatRange(0), default=0, metavar="S", help="At least S s old."),
        click.option("--text", default="", metavar="T", help="With T in a field, the id or the error."),
        click.option("--handler", default="", metavar="H", help="Of a handler with H in its name."),
        click.option("--reason", default="", metavar="R", help="With R in the reason."),
    ):
        function = option(function)
    return function


@command("""\
    supervisor dead list
    supervisor dead list events:user_created email_workers --text ada@example.com""")
@click.argument("stream", required=False)
@click.argument("group", required=False)
@_filtered
@click.option("--count", type=click.IntRange(1), default=100, show_default=True, help="How many, the oldest first.")
@config_option
@redis_option
@json_option
def list_(  # noqa: PLR0913, PLR0917 - one parameter an option
    stream: str | None, group: str | None, reason: str, handler: str, text: str, older_s: float, count: int,
    config: Path | None, redis: str | None, as_json: bool,
) -> None:  # fmt: skip
    """List dead letters: of one group, of a stream's groups, or of all handlers here."""
    from supervisor.broker.dead import Filter

    loaded = load_settings(config, {"redis.url": redis})
    wanted = Filter(reason, handler, text, int(older_s * 1000))

    async def run(client: Redis) -> tuple[list[Letter], int]:
        found: list[Letter] = []
        total = 0
        for pair in await _pairs(loaded, stream, group):
            chosen = await _choose(client, *pair, wanted)
            total += len(chosen)
            found += chosen[: count - len(found)]
        return found, total

    found, total = _with_redis(loaded, run)
    if as_json:
        for letter in found:
            click.echo(dumps(letter.as_dict()))
        return
    _print(found)
    talk(f"{total} dead letter{'s' * (total != 1)}" + (f", {len(found)} shown" if total > len(found) else ""))


@command("supervisor dead show events:user_created email_workers 1764000000000-0")
@click.argument("stream")
@click.argument("group")
@click.argument("id_", metavar="ID")
@config_option
@redis_option
@json_option
def show(stream: str, group: str, id_: str, config: Path | None, redis: str | None, as_json: bool) -> int:
    """Show one dead letter whole, with its traceback. ID is the letter's or the message's."""
    loaded = load_settings(config, {"redis.url": redis})
    letter = next(iter(_with_redis(loaded, lambda client: _named(client, stream, group, [id_]))))
    if as_json:
        click.echo(dumps(letter.as_dict(), pretty=True))
        return EXIT_OK
    for name, value in letter.as_dict().items():
        if name == "fields":
            click.echo("fields")
            click.echo("\n".join(f"  {field} = {text}" for field, text in letter.fields.items()))
        elif name in ("traceback", "stack"):
            click.echo(f"\n{value}" if value else "", nl=bool(value))
        elif value not in ("", None):
            click.echo(f"{name:<10}  {_moment(value) if name == 'dead_at_ms' else value}")
    return EXIT_OK


def _change(verb: str, done: str, help_text: str) -> click.Command:
    """`replay` and `drop` choose in the same way, and say first how many they mean."""

    @click.argument("stream")
    @click.argument("group")
    @click.argument("ids", nargs=-1, metavar="[ID]...")
    @_filtered
    @click.option("--yes", is_flag=True, help="Don't ask.")
    @config_option
    @redis_option
    @json_option
    def change(  # noqa: PLR0913, PLR0917 - one parameter an option
        stream: str, group: str, ids: tuple[str, ...], reason: str, handler: str, text: str, older_s: float,
        yes: bool, config: Path | None, redis: str | None, as_json: bool,
    ) -> int:  # fmt: skip
        from supervisor.broker.dead import Filter

        loaded = load_settings(config, {"redis.url": redis})
        wanted = Filter(reason, handler, text, int(older_s * 1000))
        chosen = _with_redis(
            loaded, lambda c: _named(c, stream, group, ids) if ids else _choose(c, stream, group, wanted)
        )
        if not chosen:
            talk(f"no dead letter to {verb}")
            return EXIT_OK
        talk(f"{len(chosen)} dead letter{'s' * (len(chosen) != 1)} of {stream} {group}")
        if not yes and not click.confirm(f"{verb.capitalize()} {'it' if len(chosen) == 1 else 'them'}?", err=True):
            return EXIT_FAILED
        outcomes = _with_redis(loaded, lambda client: _carry_out(client, verb, chosen))
        return _tell(outcomes, done, as_json=as_json)

    change.__doc__ = help_text
    return command(f"supervisor dead {verb} events:user_created email_workers --reason Timeout --yes", name=verb)(
        change
    )


async def _carry_out(client: Redis, verb: str, chosen: Sequence[Letter]) -> list[tuple[Letter, str]]:
    from supervisor.broker.dead import drop, replay

    found = []
    for letter in chosen:
        said = await replay(client, letter) if verb == "replay" else "dropped" * await drop(client, letter) or "gone"
        found.append((letter, said))
    return found


def _tell(outcomes: Sequence[tuple[Letter, str]], done: str, *, as_json: bool) -> int:
    for letter, said in outcomes:
        if as_json:
            click.echo(dumps({"letter_id": letter.letter_id, "id": letter.id, "outcome": said}))
        elif said == "trimmed":
            talk(f"{letter.id} is no longer in the stream and can't be put back; its fields are in `dead show`")
        elif said == "gone":
            talk(f"{letter.letter_id} was settled by somebody else")
    count = sum(said == done for _, said in outcomes)
    talk(f"{count} {done}")
    return EXIT_OK if count == len(outcomes) else EXIT_FAILED


async def _pairs(loaded: Loaded, stream: str | None, group: str | None) -> list[tuple[str, str]]:
    from supervisor.cli.streams import handled_pairs

    if stream and group:
        return [(stream, group)]
    found = [pair for pair in await handled_pairs(loaded) if stream in (None, pair[0])]
    if not found:
        raise UsageError(f"no handler here reads {stream!r}; name its group too" if stream else "no handler is here")
    return found


async def _choose(client: Redis, stream: str, group: str, wanted: Filter) -> list[Letter]:
    from supervisor.broker.dead import letters

    now_ms = int(time.time() * 1000)
    return [letter async for letter in letters(client, stream, group) if wanted.fits(letter, now_ms)]


async def _named(client: Redis, stream: str, group: str, ids: Sequence[str]) -> list[Letter]:
    from supervisor.broker.dead import letters

    found = {}
    async for letter in letters(client, stream, group):
        found.update({id_: letter for id_ in ids if id_ in (letter.id, letter.letter_id)})
    missing = [id_ for id_ in ids if id_ not in found]
    if missing:
        raise UsageError(f"no dead letter {missing[0]!r} of {stream} {group}; `supervisor dead list` shows all")
    return list(found.values())


def _with_redis(loaded: Loaded, work: Callable[[Redis], Any]) -> Any:
    import asyncio

    from supervisor.cli.redis import open_redis

    async def run() -> Any:
        async with open_redis(loaded.settings) as client:
            return await work(client)

    return asyncio.run(run())


def _print(found: Sequence[Letter]) -> None:
    from supervisor.cli.tables import print_table
    from supervisor.words import duration

    now_s = time.time()
    rows = [
        [
            letter.letter_id,
            letter.id,
            letter.group,
            duration(max(0.0, now_s - letter.dead_at_ms / 1000)),
            str(letter.deliveries),
            letter.handler.rpartition(".")[2],
            letter.reason[:REASON_CHARACTERS],
        ]
        for letter in found
    ]
    if rows:
        columns = ["letter", "message", "group", "age", "deliveries", "handler", "reason"]
        print_table(columns, rows, numbers=["age", "deliveries"])


def _moment(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ms / 1000))


dead.add_command(list_, "list")
dead.add_command(show)
dead.add_command(
    _change("replay", "replayed", "Put messages back into the pending list of their group, as if never tried.")
)
dead.add_command(_change("drop", "dropped", "Remove dead letters for good."))
