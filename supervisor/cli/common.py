"""What all commands share: the options, help with its examples first, settings, output.

stdout carries data, stderr talk. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from supervisor.settings.load import Loaded

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Examples(click.Command):
    """A command whose help begins with examples."""

    def __init__(self, *args: Any, examples: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, as they are written, then the text."""
        if self.examples:
            formatter.write_paragraph()
            formatter.write_heading("Examples")
            formatter.write("\n".join(f"  {line.strip()}" for line in self.examples.splitlines()) + "\n")
        super().format_help_text(ctx, formatter)


def command(
    examples: str, kind: type[Examples] = Examples, **attributes: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """`@click.command` with examples, one a line."""
    return click.command(cls=kind, examples=examples, context_settings=CONTEXT, **attributes)


config_option = click.option(
    "--config",
    "-c",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read this config.toml.  [default: ./config.toml, if there is one]",
)
redis_option = click.option("--redis", metavar="URL", help="In place of redis.url.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def load_settings(config: Path | None, flags: Mapping[str, Any] | None = None) -> Loaded:
    """The settings for a command. Raises ConfigError."""
    from supervisor.settings.load import load

    return load(config, flags or {})


def load_settings_anyway(config: Path | None) -> Loaded:
    """The settings for a command that asks a pool that runs; what is wrong with them is only told."""
    from supervisor.settings.load import load_anyway

    loaded, errors = load_anyway(config)
    for error in errors:
        warn(error)
    return loaded


def dumps(value: object, *, pretty: bool = False) -> str:
    """The value as JSON text."""
    separators = None if pretty else (",", ":")
    return json.dumps(value, ensure_ascii=False, indent=2 if pretty else None, separators=separators, default=str)


def talk(text: str) -> None:
    """Say something to the person, on stderr."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """Tell of something that is wrong and hinders nothing now, on stderr."""
    talk(f"{click.style('warning:', fg='yellow', bold=True)} {text}")
