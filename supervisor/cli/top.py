"""`supervisor top`: shows the pool and its groups, live."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn

import click

from supervisor.cli.common import (
    Value,
    command,
    config_option,
    count_option,
    dumps,
    json_lines_option,
    load_settings_anyway,
)
from supervisor.cli.keyboard import Keyboard
from supervisor.cli.screen import moved, view
from supervisor.errors import EXIT_OK
from supervisor.values import Duration

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded

#: The document of `status`, messages per second by slot, and the time of day.
Look = tuple[dict[str, Any], dict[int, float], str]
#: They have no control sequences; rich draws nothing there.
_PLAIN_TERMINALS = ("dumb", "unknown")


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
@json_lines_option
def top(interval_s: float, count: int | None, config: Path | None, as_json: bool) -> int:
    """Watch workers and groups until q or Ctrl-C; arrows and PgUp, PgDn scroll.

    With --json or in a pipe, updates are printed one after the other.
    """
    looks = _looks(load_settings_anyway(config), interval_s, count)
    if as_json:
        for status, _, _ in looks:
            click.echo(dumps(status))
    elif sys.stdout.isatty() and os.environ.get("TERM") not in _PLAIN_TERMINALS:
        _live(looks)
    else:
        for look in looks:
            click.echo(_frame(*look) + "\n")
    return EXIT_OK


def _looks(loaded: Loaded, interval_s: float, count: int | None) -> Iterator[Look]:
    """Yield the document of `status`, the messages per second of each slot since the last one, and the time."""
    import asyncio

    from supervisor.status import collect

    before: dict[int, int] = {}
    before_s = time.monotonic()
    looked = 0
    while True:
        status = asyncio.run(collect(loaded.settings))
        now_s = time.monotonic()
        done = {worker["slot"]: worker["done"] for worker in status["workers"]}
        passed_s = max(now_s - before_s, 1e-3)
        rates = {slot: (number - before[slot]) / passed_s for slot, number in done.items() if slot in before}
        yield status, rates, time.strftime("%H:%M:%S")
        before, before_s = done, now_s
        looked += 1
        if looked == count:
            return
        time.sleep(max(0.0, now_s + interval_s - time.monotonic()))


def _live(looks: Iterator[Look]) -> None:
    """Draw the updates on the terminal, and scroll in between."""
    from rich.console import Console
    from rich.live import Live

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, _leave)
    console = Console(highlight=False)
    feed = _Feed(looks)
    offset, look = 0, feed.first()
    with Keyboard() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while look is not None:
            status, rates, clock = look
            shown = view(status, rates, clock, offset, (console.size.width, console.size.height))
            live.update(_text(shown.lines), refresh=True)
            offset, page = shown.offset, shown.page
            for command in keyboard.wait(feed.ready_fd):
                if command == "quit":
                    return
                if command == "stop":
                    live.stop()
                    keyboard.stop()
                if command in ("stop", "draw"):
                    live.stop()
                    live.start()
                offset = moved(offset, command, page)
            look = feed.latest(look)


def _leave(number: int, _frame: object) -> NoReturn:
    """End with the code that a shell gives for the signal; on the way out the terminal is restored."""
    sys.exit(128 + number)


def _text(lines: list[str]) -> Any:
    """Return the lines for rich, each cut at the edge of the terminal instead of folded."""
    from rich.text import Text

    text = Text("\n", no_wrap=True, overflow="ellipsis").join(Text.from_ansi(line) for line in lines)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


class _Feed:
    """Collects updates in a thread, so that a Redis that does not answer holds up no key."""

    def __init__(self, looks: Iterator[Look]) -> None:
        self._updates: SimpleQueue[Look | BaseException | None] = SimpleQueue()
        #: Readable when there is an update.
        self.ready_fd, self._written = os.pipe()
        Thread(target=self._collect, args=(looks,), daemon=True).start()

    def _collect(self, looks: Iterator[Look]) -> None:
        error: BaseException | None = None
        try:
            for look in looks:
                self._put(look)
        except Exception as failed:
            error = failed
        self._put(error)

    def _put(self, update: Look | BaseException | None) -> None:
        self._updates.put(update)
        os.write(self._written, b".")

    def first(self) -> Look | None:
        """Wait for the first update; None when there is none."""
        return self._take()

    def latest(self, shown: Look) -> Look | None:
        """Return the last update, or the one that is shown when there is no new one; None at the end."""
        look: Look | None = shown
        while look is not None and not self._updates.empty():
            look = self._take()
        return look

    def _take(self) -> Look | None:
        os.read(self.ready_fd, 1)
        update = self._updates.get()
        if isinstance(update, BaseException):
            raise update
        return update


def _frame(status: dict[str, Any], rates: dict[int, float], clock: str) -> str:
    from supervisor.cli.status import show

    return f"supervisor top  {clock}\n\n{show(status, rates=rates)}"
