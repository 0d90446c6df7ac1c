"""The exit report: how a pool ended, written to its state directory for `supervisor stop`.

The control socket can't report this, because it is closed before the last child has exited.
"""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from supervisor.settings.paths import PoolPaths

#: The reason for EXIT_DRAIN.
WORK_LEFT = "unfinished messages stay pending and run at the next start"
_REASON_CHARS_MAX = 500
_RESERVED_BYTES = 4096
#: The wall clock may be adjusted by this much in between.
CLOCK_SLACK_S = 1.0


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How one arbiter ended."""

    pid: int
    exit_code: int
    reason: str
    #: Unix time.
    at_s: float


def write(paths: PoolPaths, exit_code: int, reason: str) -> None:
    """Write the report; errors are ignored, because a full disk must not change how the pool ends."""
    report = ExitReport(os.getpid(), exit_code, reason[:_REASON_CHARS_MAX], time.time())
    draft = _draft(paths)
    with contextlib.suppress(OSError):
        _overwrite(draft, json.dumps(asdict(report)).encode())
        draft.replace(paths.exit_report)


def reserve(paths: PoolPaths) -> None:
    """Take the room of a report now: when the pool ends, the disk may be full. Errors are ignored."""
    with contextlib.suppress(OSError):
        _overwrite(_draft(paths), b"")


def _draft(paths: PoolPaths) -> Path:
    return paths.exit_report.with_suffix(".new")


def _overwrite(path: Path, data: bytes) -> None:
    """Write over what the file has, so that nothing new is needed on the disk; JSON may end with blanks."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data.ljust(_RESERVED_BYTES))
    finally:
        os.close(fd)


def read(paths: PoolPaths, pid: int, since_s: float) -> ExitReport | None:
    """Return the report of the arbiter `pid`, unless it is older than `since_s`: pids are reused."""
    try:
        report = ExitReport(**json.loads(paths.exit_report.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return report if report.pid == pid and report.at_s >= since_s - CLOCK_SLACK_S else None
