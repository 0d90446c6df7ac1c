"""What the consumers of one worker share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from supervisor.broker.command_connection import CommandConnection
from supervisor.settings.paths import redis_url
from supervisor.settings.redis_url import is_cluster
from supervisor.worker.settler import Settler

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from supervisor.core.outcome import Crash
    from supervisor.log import FaultLog
    from supervisor.settings.model import Settings
    from supervisor.shared_state import SharedSlot
    from supervisor.worker.process_calls import ProcessPool
    from supervisor.worker.run_control import RunControl
    from supervisor.worker.thread_calls import HandlerThreads
    from supervisor.worker.turn_settler import TurnSettler
    from supervisor.worker.worker_lacks import WorkerLacks


@dataclass(frozen=True, slots=True)
class Resources:
    """What one handler uses; only `commands` and `settler` differ between handlers, and only in a cluster."""

    redis_url: str
    #: The consumer's name in every group.
    consumer: str
    commands: CommandConnection
    settler: Settler | TurnSettler
    shared: SharedSlot
    control: RunControl
    threads: HandlerThreads
    #: For handlers with `run_in = "process"`; None where nothing may be forked.
    processes: ProcessPool | None
    lacks: WorkerLacks
    connect_timeout_s: float
    #: Logs faults of Redis and of handlers; limits its own rate.
    faults: FaultLog
    #: Set to an error of the worker's own code, which then ends the worker.
    bug: asyncio.Future[None]
    #: End when nothing is left to read.
    burst: bool
    #: How the slot's last process ended, if it crashed.
    crash: Crash | None


class SettleConnections:
    """The connections by which a worker settles: one for all streams, or in a cluster one to each stream's node.

    In a cluster, a node may be away while the others are not: it must not hold up what they do.
    """

    def __init__(
        self,
        settings: Settings,
        streams: Iterable[str],
        consumer: str,
        shared: SharedSlot,
        faults: FaultLog,
        control: RunControl,
    ) -> None:
        """Prepare the connections; each is made at its first use."""
        url, timeout_s = redis_url(settings), settings.redis.connect_timeout_s
        self._per_stream = is_cluster(url)
        self._made: dict[str, tuple[CommandConnection, Settler]] = {}
        for key in dict.fromkeys(map(self._key, streams)):
            commands = CommandConnection(url, key=key, name=f"supervisor-{consumer}", connect_timeout_s=timeout_s)
            self._made[key] = commands, Settler(commands, shared, faults, control)

    def of(self, stream: str) -> tuple[CommandConnection, Settler]:
        """Return the connection for that stream and the settler that writes to it."""
        return self._made[self._key(stream)]

    @property
    def settlers(self) -> list[Settler]:
        """All settlers."""
        return [settler for _, settler in self._made.values()]

    async def close(self) -> None:
        """Drop the connections."""
        for commands, _ in self._made.values():
            await commands.close()

    def _key(self, stream: str) -> str:
        return stream if self._per_stream else ""
