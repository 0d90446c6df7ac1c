"""Repeats a call in a thread while something else is measured."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(call: Callable[[], object]) -> Iterator[None]:
    """Make the call again and again in a thread, without a pause, until the block ends."""
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            call()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
