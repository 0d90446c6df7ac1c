"""What the consumers of one worker share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor as Threads

    from supervisor.broker.wire import Wire
    from supervisor.core.outcome import Crash
    from supervisor.log import FaultLog
    from supervisor.shared_state import SharedSlot
    from supervisor.worker.gate import Gate
    from supervisor.worker.settler import Settler


@dataclass(frozen=True, slots=True)
class Surroundings:
    """One per worker."""

    redis_url: str
    #: The consumer's name in every group.
    name: str
    wire: Wire
    settler: Settler
    shared: SharedSlot
    gate: Gate
    threads: Threads
    threads_max: int
    connect_timeout_s: float
    #: Logs faults of Redis and of handlers; limits its own rate.
    faults: FaultLog
    #: Ends the worker for a bug of its own.
    broke: Callable[[BaseException], None]
    #: Read what is there and end.
    burst: bool
    #: How the slot's last process ended, if it crashed.
    crash: Crash | None
