"""`supervisor top`: shows the pool and its groups, live."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import Value, command, config_option, count_option, dumps, json_option, load_settings_anyway
from supervisor.errors import EXIT_OK
from supervisor.values import Duration

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded


@command(
    """\
    supervisor top
    supervisor top --interval 5
    supervisor top --json | jq '.workers[].done'""",
    short_help="Watch workers and groups, live.",
)
@click.option(
    "--interval",
    "interval_s",
    type=Value(Duration(0.1, 3600)),
    default=1.0,
    show_default=True,
    metavar="S",
    help="Time between two updates.",
)
@count_option(text="Exit after N updates.")
@config_option
@json_option
def top(interval_s: float, count: int | None, config: Path | None, as_json: bool) -> int:
    """Watch workers and groups until Ctrl-C. With --json or in a pipe, updates are printed one after the other."""
    looks = _looks(load_settings_anyway(config), interval_s, count)
    if as_json:
        for found, _ in looks:
            click.echo(dumps(found))
    elif sys.stdout.isatty():
        _live(looks)
    else:
        for found, rates in looks:
            click.echo(_frame(found, rates) + "\n")
    return EXIT_OK


def _looks(loaded: Loaded, interval_s: float, count: int | None) -> Iterator[tuple[dict[str, Any], dict[int, float]]]:
    """Yield the document of `status` and the messages per second of each slot since the last one."""
    import asyncio

    from supervisor.status import collect

    before: dict[int, int] = {}
    before_s = time.monotonic()
    looked = 0
    while True:
        found = asyncio.run(collect(loaded.settings))
        now_s = time.monotonic()
        done = {worker["slot"]: worker["done"] for worker in found["workers"]}
        passed_s = max(now_s - before_s, 1e-3)
        rates = {slot: (number - before[slot]) / passed_s for slot, number in done.items() if slot in before}
        yield found, rates
        before, before_s = done, now_s
        looked += 1
        if looked == count:
            return
        time.sleep(max(0.0, now_s + interval_s - time.monotonic()))


def _live(looks: Iterator[tuple[dict[str, Any], dict[int, float]]]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for found, rates in looks:
            live.update(Text.from_ansi(_frame(found, rates), overflow="fold"), refresh=True)


def _frame(found: dict[str, Any], rates: dict[int, float]) -> str:
    from supervisor.cli.status import show

    return f"supervisor top  {time.strftime('%H:%M:%S')}  (Ctrl-C ends it)\n\n{show(found, rates=rates)}"
