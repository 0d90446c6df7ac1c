"""`supervisor publish`: messages from the command line or from JSON, in pipelines.

A chunk is read and checked as a whole before any of it is sent, and what Redis has confirmed is
counted one by one: whatever goes wrong, the message says how many were stored.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import command, config_option, load_settings, redis_option, talk
from supervisor.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from redis.asyncio.connection import AbstractConnection

    from supervisor.settings.model import Settings

CHUNK = 500
REPLY_LIMIT_S = 10.0
PROGRESS_EVERY_S = 0.2
#: How often is tried again what a node of a cluster refuses as another's.
AGAIN_S = 0.05


@command(
    """\
    supervisor publish events:user_created user_id=1 email=ada@example.com
    supervisor publish events:user_created --json users.ndjson --quiet
    other-program | supervisor publish events:user_created --json -""",
    short_help="Append messages to a stream.",
)
@click.argument("stream")
@click.argument("fields", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--json", "source", type=click.File("rb"), metavar="FILE", help="Objects, one a line, or an array; - is stdin."
)
@click.option("--quiet", "-q", is_flag=True, help="Print how many were stored, in place of their ids.")
@config_option
@redis_option
def publish(
    stream: str, fields: tuple[str, ...], source: Any, quiet: bool, config: Path | None, redis: str | None
) -> None:
    """Append messages to a stream and print their ids, in order.

    A field's value is stored as it is when it is a string, and as JSON text otherwise.
    """
    import asyncio

    from supervisor.cli.messages import json_chunks

    if bool(fields) == (source is not None):
        raise UsageError("give either KEY=VALUE fields or --json FILE")
    chunks = json_chunks(source, CHUNK) if source is not None else iter([[_pairs(fields)]])
    settings = load_settings(config, {"redis.url": redis}).settings
    sender = _Sender(settings, stream, quiet)
    asyncio.run(sender.send_all(chunks))
    if quiet:
        click.echo(str(sender.tally.stored))
    if source is not None:
        took_s = max(time.monotonic() - sender.tally.since_s, 1e-6)
        talk(f"{sender.tally.stored:,} messages stored in {took_s:.2f} s, {sender.tally.stored / took_s:,.0f} a second")


def _pairs(words: Iterable[str]) -> list[bytes]:
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r}: a field must be KEY=VALUE")
        if key in found:
            raise UsageError(f"{word!r}: the field {key!r} is given twice")
        found[key] = value
    return [os.fsencode(text) for pair in found.items() for text in pair]


@dataclass
class _Tally:
    stored: int = 0
    #: Sent, and neither confirmed nor refused.
    unsure: int = 0
    since_s: float = 0.0
    told_s: float = 0.0


class _Sender:
    def __init__(self, settings: Settings, stream: str, quiet: bool) -> None:
        self._settings = settings
        self._stream = stream
        self._quiet = quiet
        self._progress = sys.stderr.isatty() and (quiet or not sys.stdout.isatty())
        self.tally = _Tally(since_s=time.monotonic())

    async def send_all(self, chunks: Iterator[list[list[bytes]]]) -> None:
        from redis.exceptions import RedisError

        from supervisor.broker.connect import connection
        from supervisor.cli.redis import LOST, refused, unreachable
        from supervisor.settings.paths import redis_url

        connect_s = self._settings.redis.connect_timeout_s
        url = redis_url(self._settings)
        link = connection(url, key=self._stream, connect_timeout_s=connect_s, name="supervisor-publish")
        try:
            try:
                await link.connect()
            except LOST as error:
                raise unreachable(self._settings, error) from None
            except RedisError as error:
                raise refused(self._settings, error) from None
            while chunk := self._next(chunks):
                ids, failure = await self._send(link, chunk)
                self._report(ids)
                if isinstance(failure, LOST):
                    raise unreachable(self._settings, failure, self._so_far()) from None
                if failure is not None:
                    raise refused(self._settings, failure, self._so_far())
        finally:
            await link.disconnect(nowait=True)

    def _next(self, chunks: Iterator[list[list[bytes]]]) -> list[list[bytes]]:
        try:
            return next(chunks, [])
        except UsageError as error:
            raise UsageError(f"{error}\n{self._so_far()}") from None

    async def _send(self, link: AbstractConnection, chunk: list[list[bytes]]) -> tuple[list[bytes], Exception | None]:
        """The ids of those stored, and the first thing that went wrong. What belongs elsewhere is sent there."""
        import asyncio

        from redis.exceptions import AskError, TryAgainError

        from supervisor.cli.redis import LOST
        from supervisor.settings.paths import redis_url
        from supervisor.settings.redis_url import is_cluster

        ids: list[bytes] = []
        left, failure = chunk, None
        in_cluster = is_cluster(redis_url(self._settings))
        until_s = time.monotonic() + REPLY_LIMIT_S
        while True:
            self.tally.unsure = len(left)
            try:
                await link.connect()
                left, failure = await self._send_once(link, left, ids)
            except LOST as error:
                return ids, error
            # A node of a cluster that answers so has stored nothing, and the connection now goes to the right one.
            elsewhere = in_cluster and isinstance(failure, AskError | TryAgainError)
            if not elsewhere or time.monotonic() > until_s:
                return ids, failure
            await asyncio.sleep(AGAIN_S)

    async def _send_once(
        self, link: AbstractConnection, chunk: list[list[bytes]], ids: list[bytes]
    ) -> tuple[list[list[bytes]], Exception | None]:
        """Those that were refused, and why the first of them was. Raises redis-py's errors and OSError."""
        from hiredis import pack_command
        from redis.exceptions import ResponseError

        stream = os.fsencode(self._stream)
        refused: list[list[bytes]] = []
        failure: Exception | None = None
        commands: list[Any] = [(b"XADD", stream, b"*", *fields) for fields in chunk]
        await link.send_packed_command([pack_command(words) for words in commands], check_health=False)
        for fields in chunk:
            try:
                ids.append(await link.read_response(disable_decoding=True, timeout=REPLY_LIMIT_S))
                self.tally.stored += 1
            except ResponseError as error:
                refused.append(fields)
                failure = failure or error
            self.tally.unsure -= 1
        return refused, failure

    def _report(self, ids: list[bytes]) -> None:
        if ids and not self._quiet:
            click.echo(b"\n".join(ids))
        if self._progress and time.monotonic() - self.tally.told_s > PROGRESS_EVERY_S:
            self.tally.told_s = time.monotonic()
            click.echo(f"\r{self.tally.stored:,} messages stored", err=True, nl=False)

    def _so_far(self) -> str:
        unsure = f"; {self.tally.unsure:,} more were sent and not confirmed" if self.tally.unsure else ""
        return f"{self.tally.stored:,} messages were stored{unsure}"
