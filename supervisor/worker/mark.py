"""The mark of the message that runs alone: in shared memory, and in Redis for when shared memory is lost too.

Shared memory names the message with which a worker died. When the whole pool dies with it (a container
that is out of memory is killed as one, an app has no arbiter), only what was written to Redis before the
call still tells. That costs a round trip, which only suspects pay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from supervisor.core.ids import parse_id
from supervisor.keys import isolated_key
from supervisor.shared_state import SharedSlot, SlotField

if TYPE_CHECKING:
    from supervisor.broker.wire import Argument, Wire
    from supervisor.shared_state import SharedConsumer
    from supervisor.worker.settler import Keys, Settler


class Mark:
    """One consumer's."""

    def __init__(
        self, wire: Wire, settler: Settler, keys: Keys, consumer: str, shared: SharedSlot, row: SharedConsumer
    ) -> None:
        """`row` is the consumer's, `shared` its slot's."""
        self._wire = wire
        self._settler = settler
        self._keys = keys
        self._key = isolated_key(keys.stream, keys.group)
        self._consumer = consumer
        self._row = row
        #: Nobody has written to this shared before: what a predecessor did, only Redis can tell.
        self.shared_is_new = shared.get(SlotField.INCARNATION) <= 1

    async def set(self, entry: bytes) -> None:
        """`entry` is about to run with nothing else in hand: start it before anything is awaited."""
        await self._try("HSET", self._key, self._consumer, entry)
        self._row.set_isolated(*parse_id(entry))

    def over(self) -> None:
        """Its handler has ended, so no crash from now on is its own. Redis hears of it with the outcome."""
        self._row.set_isolated(0, 0)
        self._settler.unmark(self._keys, self._consumer)

    async def clear(self) -> None:
        """It is ended on purpose."""
        self._row.set_isolated(0, 0)
        await self._try("HDEL", self._key, self._consumer)

    async def take(self) -> None:
        """It is about to be charged. The mark goes first: no crash is counted twice. Raises redis-py's errors."""
        await self._wire.call("HDEL", self._key, self._consumer)
        self._row.set_isolated(0, 0)

    async def find(self) -> tuple[int, int] | None:
        """The message that ran alone when the predecessor died. Raises redis-py's errors.

        A shared that has known the predecessor is believed alone: its arbiter has seen why that one ended.
        """
        if not self.shared_is_new:
            return self._row.isolated()
        entry = await self._wire.call("HGET", self._key, self._consumer)
        return parse_id(entry) if entry else None

    async def _try(self, *command: Argument) -> Any:
        """Without Redis shared memory has to do: a fault of Redis holds up no message that is in hand already."""
        try:
            return await self._wire.call(*command)
        except (RedisError, OSError):
            return None
