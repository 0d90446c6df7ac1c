"""Gives a server a larger share of the CPU than the workers beside it, in a control group of its own."""

import contextlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import eventually

#: Times the share of any other group, as `CPUWeight=1600` of systemd.
TIMES = 16
_ROOT = Path("/sys/fs/cgroup")


@contextmanager
def larger_share(pid: int) -> Iterator[bool]:
    """Give the process TIMES the CPU share of others; False where this machine does not allow it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_group(pid))
        except OSError:  # not Linux, not root, or without the controller
            yield False
        else:
            yield True


@contextmanager
def _group(pid: int) -> Iterator[None]:
    parent, file, share = _place()
    path = parent / f"bench-{uuid.uuid4().hex}"
    path.mkdir()
    try:
        (path / file).write_text(str(share * TIMES))
        (path / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        with contextlib.suppress(OSError):  # it has ended
            (parent / "cgroup.procs").write_text(str(pid))
        eventually(lambda: not (path / "cgroup.procs").read_text().strip(), what="the server has left its group")
        path.rmdir()


def _place() -> tuple[Path, str, int]:
    """Return our own group, the file of a group's share, and what is in that by default. Raises OSError."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return _ROOT / controllers / own.lstrip("/"), "cpu.shares", 1024
    return _ROOT / own.lstrip("/"), "cpu.weight", 100
