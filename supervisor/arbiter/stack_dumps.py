"""Where children write their Python stacks, on request or when they crash in C code.

Each child has a memory file: no disk can be full or slow, and the stacks of a dead child remain. The
child's faulthandler writes; the arbiter reads after the child has exited.
"""

import fcntl
import os
import re

from supervisor.memfd import create_memfd

#: A dump starts with the innermost frames of the first thread; the rest is rarely needed.
BYTES_MAX = 16_384
#: Below a child's first frame are those of the arbiter that forked it, which say nothing about the child.
_ARBITER_FRAMES = re.compile(
    r'(\n  File "[^"\n]*/arbiter/fork\.py", line \d+ in _run_child)(?:\n  (?:File|\.\.\.)[^\n]*)+'
)


class StackDumps:
    """The memory files of all children, by name."""

    def __init__(self, inherited: dict[str, int] | None = None) -> None:
        """`inherited` are those of an earlier image of this process, whose children still write to them."""
        self.by_name: dict[str, int] = dict(inherited or {})

    def fresh(self, name: str) -> int:
        """Return the descriptor of an empty file for a child that is about to start. Raises OSError."""
        fd = self.by_name.get(name)
        if fd is None:
            fd = self.by_name[name] = create_memfd("stacks")
            # `take` truncates the file while the child may still write; appending continues at the new end.
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.ftruncate(fd, 0)
        return fd

    def take(self, name: str) -> str:
        """Return and remove what the child has written; empty if nothing."""
        fd = self.by_name.get(name)
        if fd is None:
            return ""
        text = os.pread(fd, BYTES_MAX, 0).decode(errors="replace").strip()
        os.ftruncate(fd, 0)
        return _ARBITER_FRAMES.sub(r"\1", text)

    def drop(self, name: str) -> None:
        """Close the file of a child that will not be started again."""
        fd = self.by_name.pop(name, None)
        if fd is not None:
            os.close(fd)

    def fds(self) -> list[int]:
        """Return all descriptors; a forked child closes those of the others."""
        return list(self.by_name.values())
