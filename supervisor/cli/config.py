"""`supervisor config`: shows the settings with their origins, and checks them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import (
    CONTEXT,
    ExamplesGroup,
    command,
    config_option,
    dumps,
    json_option,
    load_settings,
    talk,
    warn,
)
from supervisor.errors import ConfigError, HandlerError, SupervisorError

if TYPE_CHECKING:
    from supervisor.handling.loader import HandlerSpec
    from supervisor.settings.load import Loaded
    from supervisor.settings.model import Settings


@click.group(
    cls=ExamplesGroup,
    context_settings=CONTEXT,
    short_help="Show or check the configuration.",
    examples="""\
    supervisor config show            every key, its value and where it came from
    supervisor config check           all errors at once""",
)
def config() -> None:
    """Show or check the configuration."""


@command(
    """\
    supervisor config show
    SUPERVISOR_POOL__WORKERS=4 supervisor config show --json""",
    short_help="Print every key, its value and where it came from.",
)
@config_option
@json_option
def show(config: Path | None, as_json: bool) -> None:
    """Print every key with its value and where it came from. Passwords and tokens are masked."""
    from supervisor.settings.sources import dotted, leaves
    from supervisor.settings.validation_errors import shown

    loaded = load_settings(config)
    rows: list[dict[str, Any]] = []
    for path, value in leaves(loaded.settings.as_dict()):
        if (key := dotted(path)) in loaded.origins:
            rows.append({"key": key, "value": shown(path, value), "origin": loaded.origins[key]})
    if as_json:
        import json

        click.echo(dumps([row | {"value": json.loads(row["value"])} for row in rows], pretty=True))
        return
    from supervisor.cli.tables import table_text

    here = f"{Path.cwd()}/" if sys.stdout.isatty() else ""  # whole where a program may read it, short for people
    table = [[row["key"], row["value"], row["origin"].removeprefix(here)] for row in rows]
    click.echo(table_text(["key", "value", "origin"], table, whole=["key"]))


@command(
    """\
    supervisor config check
    supervisor config check --config production.toml""",
    short_help="Check the configuration; import handlers and routers.",
)
@config_option
@json_option
def check(config: Path | None, as_json: bool) -> None:
    """Check the configuration (exit 2 when it is wrong) and import handlers and routers (exit 4 when that fails)."""
    from supervisor.settings.unused_overrides import unused_overrides
    from supervisor.text import counted

    loaded = load_settings(config)
    errors: list[SupervisorError] = [*unusable(loaded.settings)]
    try:
        specs = _import_all(loaded)
    except HandlerError as error:
        errors.append(error)
    if errors:
        raise type(errors[0])("\n".join(map(str, errors)))
    for line in unused_overrides(loaded, [(spec.stream, spec.group) for spec in specs]):
        warn(line)
    if as_json:
        handlers = [{"stream": spec.stream, "group": spec.group, "handler": spec.name} for spec in specs]
        click.echo(dumps({"config": str(loaded.path) if loaded.path else None, "handlers": handlers}, pretty=True))
        return
    for spec in specs:
        click.echo(f"{spec.stream}  {spec.group}  {spec.name}")
    talk(f"{loaded.path or 'no config.toml, the defaults'}: valid, {counted(len(specs), 'handler')}")


def unusable(settings: Settings) -> Iterator[ConfigError]:
    """Yield what a start would refuse, though each value is allowed alone."""
    from supervisor.broker.connect import check_url
    from supervisor.http_bind import check_bind
    from supervisor.outbox.check import check_outbox

    checks: list[Callable[[], None]] = [partial(check_url, settings.redis.url), partial(check_outbox, settings)]
    if settings.api.enabled:
        checks.append(partial(check_bind, settings))
    for one in checks:
        try:
            one()
        except ConfigError as error:
            yield error


def _import_all(loaded: Loaded) -> list[HandlerSpec]:
    """Import the project's handlers and routers. Raises HandlerError."""
    from supervisor.arbiter.preload import examine
    from supervisor.cli.api import check_routers

    handlers = examine(loaded)
    if handlers.reason:
        warn(f"handlers are imported in the workers: {handlers.reason}; {handlers.cost}")
    check_routers(loaded)
    return handlers.specs


config.add_command(show)
config.add_command(check)
