"""`supervisor tail`: follows a stream, also through outages of Redis.

It reads from the last id that it printed, never from `$`: entries that arrive between two reads or while the
connection is down are printed later, in order and once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.common import (
    TEXT,
    IdBound,
    Value,
    command,
    count_option,
    json_lines_option,
    talk,
    warn,
    with_settings,
)
from supervisor.errors import UsageError

if TYPE_CHECKING:
    from supervisor.settings.load import Loaded

PAGE = 1_000
BLOCK_MS = 5_000
#: How much longer than BLOCK_MS a reply may take before the connection counts as dead.
REPLY_SLACK_S = 3.0
RECONNECT_BASE_S = 0.05
RECONNECT_MAX_S = 2.0
START = IdBound("$ or an entry id such as 0 or 1764000000000-0", "$")


@command(
    """\
    supervisor tail events:user_created             from now on
    supervisor tail events:user_created --from 0    all entries, then new ones
    supervisor tail events:user_created --json --count 1""",
    short_help="Follow a stream.",
)
@click.argument("stream", type=TEXT)
@click.option(
    "--from",
    "start",
    type=Value(START),
    default="$",
    show_default=True,
    metavar="ID",
    help="$ for now, or the id to continue after.",
)
@count_option(text="Exit after N entries.")
@with_settings
@json_lines_option
def tail(loaded: Loaded, stream: str, start: str, count: int | None, as_json: bool) -> None:
    """Follow a stream until Ctrl-C. It waits while Redis is down, and misses nothing."""
    import asyncio

    asyncio.run(_follow(loaded, stream, start, count, as_json))


async def _follow(loaded: Loaded, stream: str, start: str, count: int | None, as_json: bool) -> None:
    from supervisor.cli.read import print_entries

    follower = _Follower(loaded, stream)
    try:
        await follower.begin(start)
        talk(f"following {stream} after {follower.last_id}; Ctrl-C ends")
        left = count
        while left is None or left > 0:
            entries = await follower.next(PAGE if left is None else min(PAGE, left))
            print_entries(entries, as_json)
            left = None if left is None else left - len(entries)
    finally:
        await follower.close()


class _Follower:
    def __init__(self, loaded: Loaded, stream: str) -> None:
        from supervisor.broker.connect import client
        from supervisor.settings.paths import redis_url

        self._loaded = loaded
        self._settings = settings = loaded.settings
        self._stream = stream
        timeout_s = BLOCK_MS / 1000 + REPLY_SLACK_S
        connect_s = settings.redis.connect_timeout_s
        self._redis = client(redis_url(settings), timeout_s=timeout_s, connect_timeout_s=connect_s)
        self.last_id = ""

    async def begin(self, start: str) -> None:
        """Find the id to start after. Raises RedisUnreachableError, since waiting would not correct a wrong address."""
        from supervisor.broker.inspect import streams
        from supervisor.cli.known_names import require_stream
        from supervisor.cli.redis_client import open_redis

        async with open_redis(self._settings) as redis:
            (info,) = await streams(redis, [self._stream])
            try:
                await require_stream(self._loaded, redis, self._stream)
            except UsageError as error:  # it may be about to be created
                warn(f"{error}\nwaiting for it")
        self.last_id = (info.last_id or "0-0") if start == "$" else start

    async def next(self, count: int) -> list[Any]:
        """Return the entries after `last_id`; waits until there are some."""
        import asyncio

        from redis.exceptions import ResponseError

        from supervisor.broker.redis_errors import CONNECTION_LOST, is_transient
        from supervisor.cli.redis_client import unreachable

        failures = 0
        while True:
            try:
                reply = await self._read(count)
            except (*CONNECTION_LOST, ResponseError) as error:
                # A server that was demoted answers the blocked read with an error.
                if isinstance(error, ResponseError) and not is_transient(error):
                    raise
                if not failures:
                    talk(f"{unreachable(self._settings, error)}\nwaiting, to continue after {self.last_id}")
                await asyncio.sleep(min(RECONNECT_MAX_S, RECONNECT_BASE_S * 2.0**failures))
                failures += 1
                continue
            if failures:
                talk("connected again")
                failures = 0
            if reply:
                entries: list[Any] = reply[0][1]
                self.last_id = entries[-1][0].decode()
                return entries

    async def _read(self, count: int) -> Any:
        """Read once, in a separate task, which has ended when this returns or is interrupted by Ctrl-C."""
        import asyncio

        from supervisor.broker.cancelling import cancel

        words = ("XREAD", "COUNT", count, "BLOCK", BLOCK_MS, "STREAMS", self._stream, self.last_id)
        reading = asyncio.ensure_future(self._redis.execute_command(*words))
        try:
            await asyncio.wait([reading])
            return reading.result()
        finally:
            await cancel(reading)

    async def close(self) -> None:
        await self._redis.aclose()
