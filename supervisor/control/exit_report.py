"""The exit report: how a pool ended, written to its state directory for `supervisor stop`.

The control socket can't report this, because it is closed before the last child has exited.
"""

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass

from supervisor.settings.paths import PoolPaths

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
    draft = paths.exit_report.with_suffix(".new")
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(asdict(ExitReport(os.getpid(), exit_code, reason, time.time()))))
        draft.replace(paths.exit_report)


def read(paths: PoolPaths, pid: int, since_s: float) -> ExitReport | None:
    """Return the report of the arbiter `pid`, unless it is older than `since_s`: pids are reused."""
    try:
        found = ExitReport(**json.loads(paths.exit_report.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.pid == pid and found.at_s >= since_s - CLOCK_SLACK_S else None
