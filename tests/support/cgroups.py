"""A memory cgroup with a limit, of version 1 or 2, if this machine lets a test create one."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import eventually

ROOT = Path("/sys/fs/cgroup")


class MemoryGroup:
    """A new, empty cgroup."""

    def __init__(self, path: Path, limit: str, events: str) -> None:
        self._path = path
        self._limit = path / limit
        self._events = path / events

    def limit(self, limit_bytes: int) -> None:
        """Limit the memory of all its processes."""
        self._limit.write_text(str(limit_bytes))
        for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            with contextlib.suppress(OSError):
                (self._path / swap).write_text("0" if swap.endswith("max") else str(limit_bytes))

    def take(self, pid: int) -> None:
        """Move a process here; its new children start here."""
        (self._path / "cgroup.procs").write_text(str(pid))

    def oom_kills(self) -> int:
        """Return the number of processes that the out-of-memory killer ended here."""
        lines = self._events.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


@contextlib.contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """Yield a new cgroup, removed when its processes are gone; skips the test if none can be created."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = {line.split(":")[1]: line.split(":")[2] for line in lines}
    if "memory" in own:
        parent, words = ROOT / "memory" / own["memory"].lstrip("/"), ("memory.limit_in_bytes", "memory.oom_control")
    else:
        parent, words = ROOT / own.get("", "/").lstrip("/"), ("memory.max", "memory.events")
    path = parent / f"test-{uuid.uuid4().hex}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        if not os.access(path / words[0], os.W_OK) or "oom_kill " not in (path / words[1]).read_text():
            pytest.skip(f"the memory controller is not enabled in {path}")
        yield MemoryGroup(path, *words)
    finally:
        eventually(lambda: not (path / "cgroup.procs").read_text().strip(), what="the cgroup is empty")
        eventually(lambda: path.rmdir() is None, what="the cgroup is removed")
