"""The threads of plain handlers, and until when shared memory says that they may go on."""

import threading
from typing import Any

from supervisor.shared_state import SharedState, SlotField
from supervisor.worker.thread_calls import HandlerThreads


async def test_a_call_that_begins_while_another_one_ends_is_noted() -> None:
    shared: Any = SharedState().slot(0)
    threads = HandlerThreads(2, SlowStores(shared), None)  # type: ignore[arg-type]
    threads.began("first", 10.0)
    beginning = threading.Thread(target=threads.began, args=("second", 20.0))
    threads._shared.before = beginning  # type: ignore[attr-defined]
    threads.ended("first")
    beginning.join()
    assert shared.get(SlotField.THREADS_UNTIL_NS) == 20e9
    threads.shutdown()


class SlowStores:
    """A slot of shared memory; another thread runs before a value is stored, as far as it can."""

    def __init__(self, shared: Any) -> None:
        self._shared = shared
        self.before: threading.Thread | None = None

    def set(self, field: SlotField, value: int) -> None:
        thread, self.before = self.before, None
        if thread is not None:
            thread.start()
            thread.join(0.1)
        self._shared.set(field, value)
