"""The connections by which a worker settles: one for all streams, or in a cluster one to each stream's node.

A node may be away while the others are not: what it does not take must not hold up what they do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from supervisor.broker.wire import Wire
from supervisor.settings.paths import redis_url
from supervisor.settings.redis_url import is_cluster
from supervisor.worker.settler import Settler

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supervisor.log import FaultLog
    from supervisor.settings.model import Settings
    from supervisor.shared_state import SharedSlot


@dataclass(frozen=True, slots=True)
class Line:
    """A connection and who writes to it."""

    wire: Wire
    settler: Settler


class Lines:
    """All of one worker."""

    def __init__(
        self, settings: Settings, streams: Iterable[str], name: str, shared: SharedSlot, faults: FaultLog
    ) -> None:
        """`name` is the consumer's. Connects later."""
        url, limit_s = redis_url(settings), settings.redis.connect_timeout_s
        self._apart = is_cluster(url)
        self._lines: dict[str, Line] = {}
        for stream in dict.fromkeys(map(self._key, streams)):
            wire = Wire(url, key=stream, name=f"supervisor-{name}", connect_timeout_s=limit_s)
            self._lines[stream] = Line(wire, Settler(wire, shared, faults))

    def of(self, stream: str) -> Line:
        """The one for that stream."""
        return self._lines[self._key(stream)]

    @property
    def settlers(self) -> list[Settler]:
        """Of all lines."""
        return [line.settler for line in self._lines.values()]

    async def close(self) -> None:
        """Drop the connections."""
        for line in self._lines.values():
            await line.wire.close()

    def _key(self, stream: str) -> str:
        return stream if self._apart else ""
