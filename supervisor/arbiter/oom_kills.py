"""Counts the kills of the kernel's out-of-memory killer in this process's cgroup, where the counter is readable."""

from pathlib import Path

#: cgroup v2; see Documentation/admin-guide/cgroup-v2.rst of the kernel.
ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


class OomKills:
    """Counts the kills between two calls."""

    def __init__(self, path: Path | None = None) -> None:
        """`path` is a cgroup's `memory.events`; the default is the one of this process."""
        self._path = path or _own_events()
        self._seen = self._read()

    def new(self) -> int | None:
        """Return the kills since the last call; None if the counter was not readable at both times."""
        before, self._seen = self._seen, self._read()
        return None if before is None or self._seen is None else self._seen - before

    def _read(self) -> int | None:
        try:
            lines = self._path.read_text().splitlines() if self._path else []
        except OSError:
            return None
        counts = dict(line.split(" ", 1) for line in lines if " " in line)
        return int(counts["oom_kill"]) if "oom_kill" in counts else None


def _own_events() -> Path | None:
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("0::"):
            return ROOT / line[3:].lstrip("/") / "memory.events"
    return None
