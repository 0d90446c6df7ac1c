"""The groups of the pool that ran last, written to its state directory for `supervisor status` without a pool.

Only the handlers name the groups, and importing them takes longer than all else that `status` does.
"""

import contextlib
import json
from collections.abc import Iterable

from supervisor.settings.paths import PoolPaths


def write(paths: PoolPaths, pairs: Iterable[tuple[str, str]]) -> None:
    """Write (stream, group) of each handler; errors are ignored, because a pool can work without this file."""
    draft = paths.last_groups.with_suffix(".new")
    with contextlib.suppress(OSError):
        draft.write_text(json.dumps(list(pairs)))
        draft.replace(paths.last_groups)


def read(paths: PoolPaths) -> list[tuple[str, str]]:
    """Return (stream, group) of each handler that the last pool had; empty when none has run or the file is damaged."""
    try:
        return [(str(stream), str(group)) for stream, group in json.loads(paths.last_groups.read_bytes())]
    except (OSError, ValueError, TypeError):
        return []
