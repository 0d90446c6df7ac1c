"""Options, help texts, settings and output that all commands share.

Data goes to stdout, everything else to stderr. Each command imports this module, so it imports nothing slow.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import augment_usage_errors

from supervisor.core.ids import normalize_id
from supervisor.errors import UsageError
from supervisor.standard_streams import silence_stdout
from supervisor.text import did_you_mean
from supervisor.values import Duration, Kind, Text, Whole

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded

Function = TypeVar("Function", bound="Callable[..., Any]")
#: A longer list is for `--help`.
LISTED_MAX = 10
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Examples(click.Command):
    """A command whose help starts with examples."""

    def __init__(self, *args: Any, examples: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, unchanged, then the text."""
        if self.examples:
            formatter.write_paragraph()
            formatter.write_heading("Examples")
            formatter.write("\n".join(f"  {line.strip()}" for line in self.examples.splitlines()) + "\n")
        super().format_help_text(ctx, formatter)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does; each error says whose `--help` shows how, which click leaves out for a missing value."""
        with augment_usage_errors(ctx):
            return super().parse_args(ctx, args)


class ExamplesGroup(Examples, click.Group):
    """A group of commands whose help starts with examples; without a command it prints the help."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Print the help if there are no arguments; otherwise parse them as click does."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Do as click does, and say for a mistyped name which commands there are."""
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            raise click.UsageError(no_command(args[0], names), ctx)
        return super().resolve_command(ctx, args)


def no_command(name: str, names: Sequence[str]) -> str:
    """Return what to say about a name that no command has; all names are listed where they are few."""
    listed = f" (there are: {', '.join(names)})" if len(names) <= LISTED_MAX else ""
    return f"there is no command {name!r}{did_you_mean(name, names) or listed}"


def command(
    examples: str, kind: type[Examples] = Examples, **attributes: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a click command; `examples` has one example on each line."""
    return click.command(cls=kind, examples=examples, context_settings=CONTEXT, **attributes)


class Value(click.ParamType):  # type: ignore[type-arg]  # generic in new versions of click
    """The type of an option or argument: checked as settings are, with the same words in errors."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.name = "value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value as it is used. Raises UsageError."""
        try:
            if value == "" and isinstance(self.kind, Duration):  # a variable of the shell that is not set
                return self.kind.check(None)
            return self.kind.check(self.kind.parse(value) if isinstance(value, str) else value)
        except ValueError as error:
            raise UsageError(f"{_name(param, ctx)} {value!r}: {error}") from None


class NonEmptyPath(click.Path):
    """The type of a path. An empty one, of a variable of the shell that is not set, would be the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. Raises UsageError."""
        if value == "":
            raise UsageError(f"{_name(param, ctx)} '': must not be empty")
        return super().convert(value, param, ctx)


def _name(param: click.Parameter | None, ctx: click.Context | None) -> str:
    """Return `--timeout` for an option, `STREAM` for an argument."""
    if param is None or ctx is None:
        return ""
    return max(param.opts, key=len) if isinstance(param, click.Option) else param.make_metavar(ctx).strip("[].")


class EntryId(Kind):
    """The id of an entry or a dead letter; `-0` is added where the sequence is missing."""

    def check(self, value: Any) -> str:
        """Return the whole id. Raises ValueError."""
        try:
            return normalize_id(value)
        except ValueError:
            raise ValueError("must be an id such as 1764000000000-0") from None


class IdBound(Kind):
    """Where a range of entries begins or ends: an entry's id, or a sign that stands for one."""

    def __init__(self, allowed: str, signs: str, prefix: str = "") -> None:
        """`prefix` may come before an id."""
        self.allowed = allowed
        self._signs = signs
        self._prefix = prefix

    def check(self, value: Any) -> str:
        """Return the bound as it is. Raises ValueError."""
        try:
            if value not in tuple(self._signs):
                normalize_id(value.removeprefix(self._prefix))
        except ValueError:
            raise ValueError(f"must be {self.allowed}") from None
        return str(value)


class Moment(Kind):
    """A moment, in the timezone of this machine unless it has one."""

    def check(self, value: Any) -> datetime:
        """Return the moment. Raises ValueError."""
        try:
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            raise ValueError("must be a time such as 2030-01-31T08:00 or 2030-01-31T08:00+01:00") from None


SECONDS = Value(Duration())
#: Empty text would mean all of something, where a variable of the shell is not set.
TEXT = Value(Text("text that is not empty", "(?s).+"))
MOMENT = Value(Moment())
COUNT = Value(Whole(1))
ID = Value(EntryId())


def count_option(default: int | None = None, most: int | None = None, *, text: str) -> Callable[[Function], Function]:
    """Declare `--count N`; without a default there is no limit."""
    kind = Value(Whole(1, most)) if most else COUNT
    return click.option("--count", type=kind, default=default, show_default=True, metavar="N", help=text)


config_option = click.option(
    "--config",
    "-c",
    type=NonEmptyPath(path_type=Path),
    metavar="FILE",
    help="Read this config.toml.  [default: $SUPERVISOR_CONFIG, or ./config.toml if there is one]",
)
redis_option = click.option("--redis", metavar="URL", help="URL of Redis, instead of redis.url.")
#: Output of unlimited length is printed line by line as it comes; everything else is one document.
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
json_lines_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per line.")


def load_settings(config: Path | None, flags: Mapping[str, Any] | None = None) -> Loaded:
    """Load the settings for a command. Raises ConfigError."""
    from supervisor.settings.load import load

    return load(config, flags or {})


def load_settings_anyway(config: Path | None) -> Loaded:
    """Load the settings for a command that asks a running pool; errors in them are only warnings."""
    from supervisor.cli.pool_lookup import follow_running
    from supervisor.settings.load import load_anyway

    loaded, errors = load_anyway(config)
    for error in errors:
        warn(error)
    return follow_running(loaded)


def with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config and --redis to a command, whose function gets the settings as its first argument."""

    @config_option
    @redis_option
    @functools.wraps(function)
    def load_first(config: Path | None, redis: str | None, **others: Any) -> Any:
        from supervisor.cli.pool_lookup import follow_running

        return function(follow_running(load_settings(config, {"redis.url": redis})), **others)

    return load_first


def dumps(value: object, *, pretty: bool = False) -> str:
    """Return the value as JSON text, in ASCII where stdout can't encode everything."""
    ascii_only = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    separators = None if pretty else (",", ":")
    return json.dumps(value, ensure_ascii=ascii_only, indent=2 if pretty else None, separators=separators, default=str)


def report(text: str) -> None:
    """Print what was changed. A reader that leaves (`| head`) does not end the rest of the change."""
    try:
        click.echo(text)
    except BrokenPipeError:
        silence_stdout()


def talk(text: str) -> None:
    """Print a message for people to stderr."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    talk(f"{click.style('warning:', fg='yellow', bold=True)} {text}")
