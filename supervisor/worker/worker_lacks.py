"""Notes what the worker lacks: in shared memory, so that the pool is degraded, and in the log, once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from supervisor.core.lacks import REMEDIES, Lack, LackState
from supervisor.shared_state import SlotField

if TYPE_CHECKING:
    from supervisor.log import FaultLog
    from supervisor.shared_state import SharedSlot


class WorkerLacks:
    """The lacks of one worker. Any thread may note one."""

    def __init__(self, shared: SharedSlot, faults: FaultLog) -> None:
        self._shared = shared
        self._faults = faults
        self._state = LackState()
        shared.set(SlotField.LACK, Lack.NONE)

    def note(self, kind: Lack, error: BaseException) -> None:
        """Note what could not be had."""
        if self._state.note(kind, time.monotonic()):
            self._shared.set(SlotField.LACK, kind)
            self._faults.log.error(
                "worker lacks resources", lack=kind.name.lower(), error=repr(error), hint=REMEDIES[kind]
            )

    def look(self) -> None:
        """Note that a lack is over, after some calm; called at each beat."""
        kind = self._state.kind
        if self._state.look(time.monotonic()):
            self._shared.set(SlotField.LACK, Lack.NONE)
            self._faults.log.info("worker has resources again", lack=kind.name.lower())

    def reduced(self, limit: int) -> int:
        """Return how many messages to run instead of `limit`."""
        return self._state.reduced(limit) if self._state.level else limit
