"""Where children write their Python stacks, when they are asked for them or crash in C.

A memory file a child: no disk that can be full or slow, and what a dead one has written is still there.
The child's faulthandler writes, the arbiter reads when the child has left.
"""

from __future__ import annotations

import fcntl
import os
import re

from supervisor.memfd import create_memfd

#: The first lines of a dump are the innermost frames of the first thread; the rest can be had with less.
BYTES_MAX = 16_384
#: Below a child's first frame are those of the arbiter that forked it: they say nothing of the child.
_ARBITERS = re.compile(r'(\n  File "[^"\n]*/arbiter/fork\.py", line \d+ in _run_child)(?:\n  (?:File|\.\.\.)[^\n]*)+')


class StackDumps:
    """The memory files of all children, by name."""

    def __init__(self, inherited: dict[str, int] | None = None) -> None:
        """`inherited`: those of a predecessor in this process, whose children still write into them."""
        self.by_name: dict[str, int] = dict(inherited or {})

    def fresh(self, name: str) -> int:
        """An empty file for a child that is about to start; its descriptor. Raises OSError."""
        fd = self.by_name.get(name)
        if fd is None:
            fd = self.by_name[name] = create_memfd("stacks")
            # What a child has written may be taken while it lives: it goes on at the end, which is then the beginning.
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.ftruncate(fd, 0)
        return fd

    def take(self, name: str) -> str:
        """What the child has written; empty when nothing."""
        fd = self.by_name.get(name)
        if fd is None:
            return ""
        text = os.pread(fd, BYTES_MAX, 0).decode(errors="replace").strip()
        os.ftruncate(fd, 0)
        return _ARBITERS.sub(r"\1", text)

    def drop(self, name: str) -> None:
        """Give back the file of a child that is gone and comes no more."""
        fd = self.by_name.pop(name, None)
        if fd is not None:
            os.close(fd)

    def fds(self) -> list[int]:
        """All of them; a forked child closes those of others."""
        return list(self.by_name.values())
