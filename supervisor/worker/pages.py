"""Reads a consumer's own pending list, in pages that the server may send and the link can carry.

1. A page whose reply was lost is asked for smaller: a server closes a connection whose reply passes its
   `client-output-buffer-limit`, and what it would have sent is pending by then, so that it meets it again.
2. A single entry on a slow link gets more and more time.
3. A single large entry whose reply is lost again and again can't be read at all: it is given up, or it would
   hold up all that is behind it for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError

from supervisor.broker.wire import REPLY_SLACK_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from supervisor.broker.wire import BlockingReader

PAGE = 500
_SMALLER = 8
#: The longest that is waited for one page.
_SLACK_S_MAX = 30.0
#: An entry whose reply was lost so often, alone and one time after the other, is not waited for any more.
LOST_MAX = 5


class Pages:
    """The pages of one pending list."""

    def __init__(self) -> None:
        self._count = PAGE
        self._slack_s = REPLY_SLACK_S
        self._lost_after = b""
        self._lost = 0

    @property
    def unreadable_after(self) -> bytes | None:
        """The pending entry behind this id can't be read, as it seems; None: all can."""
        return self._lost_after if self._lost >= LOST_MAX else None

    async def read(self, reader: BlockingReader) -> AsyncIterator[list[list[Any]]]:
        """All of it. Raises redis-py's errors and OSError; the next time begins anew."""
        after = b"0"
        while True:
            await reader.send(self._count, start=after.decode(), slack_s=self._slack_s)
            try:
                entries = await reader.receive()
            except TimeoutError:
                self._took_too_long()
                raise
            except (RedisConnectionError, OSError):
                self._was_lost(after)
                raise
            if not entries:
                break
            after = entries[-1][0]
            yield entries
        self.forget()
        # Not before its end: a page that is too large once more would have all of it read from the start again.
        self._count, self._slack_s = min(PAGE, self._count * 2), REPLY_SLACK_S

    def forget(self) -> None:
        """Nothing is in the way any more."""
        self._lost = 0

    def _took_too_long(self) -> None:
        if self._count == 1:
            self._slack_s = min(_SLACK_S_MAX, 2 * self._slack_s)
        self._count = max(1, self._count // _SMALLER)

    def _was_lost(self, after: bytes) -> None:
        if self._count == 1:
            self._lost = self._lost + 1 if after == self._lost_after else 1
            self._lost_after = after
        self._count = max(1, self._count // _SMALLER)
