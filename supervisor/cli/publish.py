"""`supervisor publish`: messages from the command line or from JSON.

A chunk is read and checked as a whole before any of it is sent, and stored as a whole or not at all. Whatever goes
wrong, the error says how many messages were stored.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import click

from supervisor.cli.common import MOMENT, SECONDS, TEXT, command, report, talk, with_settings
from supervisor.errors import PublishError, PublishUnknownError, SupervisorError, UsageError
from supervisor.standard_streams import OutputError
from supervisor.text import counted

if TYPE_CHECKING:
    from datetime import datetime

    from supervisor.settings.load import Loaded
    from supervisor.settings.model import Settings

CHUNK = 500
REPLY_LIMIT_S = 10.0
PROGRESS_EVERY_S = 0.2


@command(
    """\
    supervisor publish events:user_created user_id=1 email=ada@example.com
    supervisor publish events:user_created --json users.ndjson --quiet
    other-program | supervisor publish events:user_created --json -
    supervisor publish reports kind=weekly --after 30m
    supervisor publish reports kind=weekly --at 2030-01-31T08:00+01:00""",
    short_help="Append messages to a stream.",
)
@click.argument("stream", type=TEXT)
@click.argument("fields", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--json",
    "source",
    type=click.File("rb"),
    metavar="FILE",
    help="Objects, one on each line, or an array; - is stdin.",
)
@click.option("--key", metavar="K", help="Store the message once in 24 h, however often it is published under K.")
@click.option("--after", "after_s", type=SECONDS, metavar="S", help="Publish later: in S (30s, 2h).")
@click.option("--at", type=MOMENT, metavar="TIME", help="Publish later: at TIME, which is local without a timezone.")
@click.option("--quiet", "-q", is_flag=True, help="Print how many were stored instead of their ids.")
@with_settings
def publish(loaded: Loaded, stream: str, fields: tuple[str, ...], source: Any, quiet: bool, **options: Any) -> None:
    """Append messages to a stream and print their ids, in order.

    A field's value is stored as it is when it is a string, and as JSON text otherwise. With --after or --at a running
    pool appends the messages when they are due; `supervisor later` lists them, and cancels them by the printed ids.
    """
    from supervisor.cli.json_input import json_chunks

    if bool(fields) == (source is not None):
        raise UsageError("give either KEY=VALUE fields or --json FILE")
    if options["key"] is not None and source is not None:
        raise UsageError("--key is for the one message of KEY=VALUE fields, not for --json FILE")
    if options["after_s"] is not None and options["at"] is not None:
        raise UsageError("give either --after or --at, not both")
    chunks = json_chunks(source, CHUNK) if source is not None else iter([[_fields(fields)]])
    progress = _Progress(quiet)
    due = _run(_publish_all(loaded.settings, stream, chunks, progress, options), progress)
    if due is not None:
        talk(f"due {due.astimezone().isoformat(sep=' ', timespec='seconds')}")
    if quiet:
        click.echo(str(progress.stored))
    if source is not None:
        took_s = max(time.monotonic() - progress.started_s, 1e-6)
        stored = counted(progress.stored, "message")
        talk(f"{stored} stored in {took_s:.2f} s, {progress.stored / took_s:,.0f} a second")


def _run(publishing: Coroutine[Any, Any, datetime | None], progress: _Progress) -> datetime | None:
    """Run it; Ctrl-C ends it at once, also while it waits for stdin, and prints how many were stored."""
    import asyncio

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else asyncio would only note the first Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    try:
        return asyncio.run(publishing)
    except KeyboardInterrupt:
        progress.clear()
        talk(progress.so_far())
        raise
    except OutputError as error:
        raise OutputError(f"{error}\n{progress.so_far()}") from None
    finally:
        progress.clear()


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fields(words: Iterable[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r}: a field must be KEY=VALUE")
        if key in fields:
            raise UsageError(f"{word!r}: the field {key!r} is given twice")
        fields[key] = value
    return fields


class _Progress:
    """Prints what was stored, and on a terminal how many."""

    def __init__(self, quiet: bool) -> None:
        self.stored = 0
        #: Messages that are sent and not confirmed.
        self.unsure = 0
        self.started_s = time.monotonic()
        self._quiet = quiet
        self._is_shown = sys.stderr.isatty() and (quiet or not sys.stdout.isatty())
        self._shown_s = 0.0
        #: The line on the terminal.
        self._shown = ""

    def add(self, ids: list[str]) -> None:
        """Count and print the messages of these ids."""
        self.stored += len(ids)
        self.unsure = 0
        if not self._quiet:
            report("\n".join(ids))
        if self._is_shown and time.monotonic() - self._shown_s > PROGRESS_EVERY_S:
            self._shown_s = time.monotonic()
            self._shown = f"{counted(self.stored, 'message')} stored"
            click.echo(f"\r{self._shown}", err=True, nl=False)

    def clear(self) -> None:
        """Take the count away from the terminal, where another line can then be printed."""
        if self._shown:
            click.echo(f"\r{' ' * len(self._shown)}\r", err=True, nl=False)
            self._shown = ""

    def so_far(self) -> str:
        """Return how many were stored, and how many were sent without an answer."""
        more = f"; {self.unsure:,} more {_were(self.unsure)} sent and not confirmed" if self.unsure else ""
        return f"{counted(self.stored, 'message')} {_were(self.stored)} stored{more}"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


async def _publish_all(
    settings: Settings,
    stream: str,
    chunks: Iterator[list[dict[str, str]]],
    progress: _Progress,
    options: dict[str, Any],
) -> datetime | None:
    """Publish all chunks; return when the last of them is due."""
    from supervisor.cli.unread_stream import AskingPublisher, unread_text
    from supervisor.settings.paths import redis_url

    limits = {"timeout_s": REPLY_LIMIT_S, "connect_timeout_s": settings.redis.connect_timeout_s}
    due = None
    async with AskingPublisher(redis_url(settings), **limits) as publisher:
        while chunk := _next(chunks, progress):
            is_first = not progress.stored
            progress.unsure = len(chunk)
            try:
                if len(chunk) == 1:
                    published = await publisher.publish(stream, chunk[0], **options)
                    due = published.due
                    progress.add([published.id])
                else:
                    stored = await publisher.publish_batch(stream, chunk, **options)
                    due = stored.due
                    progress.add(stored.ids)
            except PublishError as error:
                if not isinstance(error, PublishUnknownError):
                    progress.unsure = 0
                raise _failure(settings, error, progress.so_far()) from None
            if is_first and await publisher.is_unread(stream):
                progress.clear()
                talk(unread_text(settings, stream))
    return due


def _next(chunks: Iterator[list[dict[str, str]]], progress: _Progress) -> list[dict[str, str]]:
    try:
        return next(chunks, [])
    except UsageError as error:
        raise UsageError(f"{error}\n{progress.so_far()}") from None


def _failure(settings: Settings, error: PublishError, so_far: str) -> SupervisorError:
    """Make the same error that every other command raises."""
    from supervisor.broker.redis_errors import CONNECTION_LOST, UNREACHABLE
    from supervisor.cli.redis_client import refused, unreachable

    # Its own text begins with what became of the message, which `so_far` says.
    own = PublishError(str(error).partition(": ")[2] or str(error), error.code) if error.code == UNREACHABLE else error
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else own
    if error.code == UNREACHABLE or isinstance(cause, CONNECTION_LOST):
        return unreachable(settings, cause, so_far)
    return refused(settings, cause, so_far)
