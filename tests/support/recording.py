"""Handlers that record each delivery in files that survive their worker, and a reader of these files."""

import collections

from tests.support.pool import Pool

#: Each delivery is a line in the worker's file, written in one call, so that it survives the worker.
RECORD = """
    import os, time
    from supervisor import Message, handler

    def record(text):
        fd = os.open(f"seen.{os.getpid()}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(fd, f"{text} {time.monotonic_ns()}\\n".encode())
        os.close(fd)
"""

SIMPLE = (
    RECORD
    + """
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        record(message.fields["n"])
"""
)

#: Holds what it gets, until the folder has a file `go` when it is called.
HOLDING = (
    RECORD
    + """
    import asyncio
    @handler("events", group="workers")
    async def handle(message: Message) -> None:
        go = os.path.exists("go")
        record(message.fields["n"])
        if not go:
            await asyncio.Event().wait()
        record("done")
"""
)


def records(pool: Pool) -> list[tuple[int, str, int]]:
    """All that was recorded, oldest first: pid, text, monotonic ns."""
    found = []
    for path in pool.folder.glob("seen.*"):
        # What stands behind the last newline is being written.
        for line in path.read_text().rpartition("\n")[0].splitlines():
            text, at_ns = line.split()
            found.append((int(path.suffix[1:]), text, int(at_ns)))
    return sorted(found, key=lambda row: row[2])


def seen(pool: Pool) -> collections.Counter[str]:
    """How often each text was recorded."""
    return collections.Counter(text for _, text, _ in records(pool))


def times_ns(pool: Pool, text: str) -> list[int]:
    """When this text was recorded."""
    return [at_ns for _, found, at_ns in records(pool) if found == text]
