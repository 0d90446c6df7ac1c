"""A parent that forks again at once what dies: `python -m benchmarks.bare_parent URL STREAM GROUP N`.

The least that a recovery can cost with fork and redis-py: each child connects, reads its own pending list
and then waits for new entries. There is no restart policy, no supervision of anything but the exit, and
nothing else is done. Runs in a folder with a `handlers.py` that has `handle`; prints the children's pids.
"""

import asyncio
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis


class Entry:
    """As much of a message as the handler looks at."""

    def __init__(self, entry_id: bytes) -> None:
        self.id = entry_id.decode()


async def child(url: str, stream: str, group: str, consumer: str, handle: Any) -> None:
    """Run what is pending, then what comes, all at once."""
    redis = Redis.from_url(url)
    running = set()
    start = "0"
    while True:
        reply: Any = await redis.xreadgroup(group, consumer, {stream: start}, count=100, block=1000)
        found = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1] if reply else []
        entries = found[0] if found and isinstance(found[0], list) else found
        running |= {asyncio.create_task(handle(Entry(entry_id))) for entry_id, _ in entries}
        start = ">"


def fork(slot: int, url: str, stream: str, group: str, handle: Any) -> int:
    """A child; its pid."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        uvloop.run(child(url, stream, group, f"bare:{slot}", handle))
    return pid


def main(url: str, stream: str, group: str, children: int) -> None:
    """Fork, wait, fork again, until SIGTERM."""
    sys.path.insert(0, str(Path.cwd()))
    handle = import_module("handlers").handle

    slots = {fork(slot, url, stream, group, handle): slot for slot in range(children)}

    def leave(*_: object) -> None:
        for pid in slots:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    print(*slots, flush=True)
    while True:
        pid, _ = os.wait()
        slot = slots.pop(pid)
        slots[fork(slot, url, stream, group, handle)] = slot


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
