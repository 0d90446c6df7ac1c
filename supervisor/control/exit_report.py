"""How a pool has ended: left behind in its state directory for who told it to stop and waits for its end.

The control socket can't tell: it is gone before the last child is.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.settings.paths import PoolPaths

#: A clock may be set meanwhile; by no more than this.
CLOCK_SLACK_S = 1.0


@dataclass(frozen=True, slots=True)
class ExitReport:
    """The last words of one arbiter."""

    pid: int
    exit_code: int
    reason: str
    #: Unix time.
    at_s: float


def write(paths: PoolPaths, exit_code: int, reason: str) -> None:
    """The last thing that an arbiter does; a full disk must not change how it ends."""
    draft = paths.exit_report.with_suffix(".new")
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(asdict(ExitReport(os.getpid(), exit_code, reason, time.time()))))
        draft.replace(paths.exit_report)


def read(paths: PoolPaths, pid: int, since_s: float) -> ExitReport | None:
    """What the arbiter `pid` has said since then; an older word is another one's, for pids come again."""
    try:
        found = ExitReport(**json.loads(paths.exit_report.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.pid == pid and found.at_s >= since_s - CLOCK_SLACK_S else None
