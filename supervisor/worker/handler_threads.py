"""The threads of a worker's plain handlers.

1. Work that was queued runs once, even if no thread can be started for it now: another thread takes it, or one that is
   started later. `ThreadPoolExecutor` raises for it and runs it all the same.
2. Shared memory says until when a call may go on: a thread that holds Python's lock keeps the loop from beating.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from supervisor.core.lacks import Lack
from supervisor.shared_state import SlotField

if TYPE_CHECKING:
    from supervisor.shared_state import SharedSlot
    from supervisor.worker.worker_lacks import WorkerLacks

#: How soon to try again to start a thread.
_RETRY_S = 0.5


class HandlerThreads(ThreadPoolExecutor):
    """Threads that are started when they are needed, as far as the system allows."""

    def __init__(self, size: int, shared: SharedSlot, lacks: WorkerLacks) -> None:
        super().__init__(size, thread_name_prefix="handler")
        self.size = size
        self._shared = shared
        self._lacks = lacks
        self._loop = asyncio.get_running_loop()
        self._due_ns: dict[object, int] = {}
        self._due_lock = threading.Lock()
        self._retry: asyncio.TimerHandle | None = None

    def _adjust_thread_count(self) -> None:
        """Start a thread for what is queued; without one, try again later. Called by `submit`, in the event loop."""
        try:
            super()._adjust_thread_count()
        except (RuntimeError, MemoryError) as error:
            self._lacks.note(Lack.THREADS, error)
            if self._retry is None:
                self._retry = self._loop.call_later(_RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if self._work_queue.qsize() and not self._shutdown:
            self._adjust_thread_count()
            if self._retry is None and self._work_queue.qsize():
                self._retry = self._loop.call_later(0, self._try_again)

    def began(self, call: object, until_s: float) -> None:
        """Note that a call runs, and until when it may. Called by its thread, as `ended` is."""
        with self._due_lock:
            self._due_ns[call] = int(until_s * 1e9)
            self._publish()

    def ended(self, call: object) -> None:
        """Note that the call has ended."""
        with self._due_lock:
            del self._due_ns[call]
            self._publish()

    def _publish(self) -> None:
        self._shared.set(SlotField.THREADS_UNTIL_NS, max(self._due_ns.values(), default=0))
