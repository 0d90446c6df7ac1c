"""A cgroup that limits the number of processes, if this machine lets a test create one.

Root is subject to no RLIMIT_NPROC, so nothing else has a fork refused for one process alone.
"""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import eventually

ROOT = Path("/sys/fs/cgroup")


class PidsGroup:
    """A new, empty cgroup."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self, pid: int) -> None:
        """Move one process here; its existing children stay where they are, new ones start here."""
        (self._path / "cgroup.procs").write_text(str(pid))

    def limit(self, count: int | None) -> None:
        """Limit the number of processes; None removes the limit."""
        (self._path / "pids.max").write_text("max" if count is None else str(count))

    def refused(self) -> int:
        """Return the number of refused forks."""
        return int((self._path / "pids.events").read_text().split()[1])


@contextlib.contextmanager
def pids_group() -> Iterator[PidsGroup]:
    """Yield a new cgroup, removed when its processes are gone; skips the test if none can be created."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = {line.split(":")[1]: line.split(":")[2] for line in lines}
    parent = ROOT / "pids" / own["pids"].lstrip("/") if "pids" in own else ROOT / own.get("", "/").lstrip("/")
    path = parent / f"test-{uuid.uuid4().hex}"
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"no pids cgroup can be made here: {error}")
    try:
        if not (path / "pids.max").exists():
            pytest.skip(f"the pids controller is not enabled in {path}")
        yield PidsGroup(path)
    finally:
        eventually(lambda: not (path / "cgroup.procs").read_text().strip(), what="the cgroup is empty")
        eventually(lambda: path.rmdir() is None, what="the cgroup is removed")
