"""Which message is charged for a crash, and when that was one crash too many. Pure.

Only a message that was alone in hand is charged: with others beside it the culprit is not known,
so they all run again, one at a time.
"""

from collections.abc import Iterable

from supervisor.core.ids import parse_id
from supervisor.core.options import Options
from supervisor.core.outcome import CRASHED, Dead


def marked(pending: Iterable[bytes], alone: tuple[int, int] | None) -> bytes | None:
    """Return the pending entry that ran isolated at the crash; None if it is settled, or if none ran isolated."""
    return next((entry for entry in pending if parse_id(entry) == alone), None)


def lone_suspect(suspects: int, *, charged: bool, all_read: bool) -> bool:
    """Return whether the suspect was the only message in the process, so that the crash is charged to it at once.

    `suspects` are those of all consumers of the worker. `charged`: suspects ran one at a time, so the mark names the
    message. `all_read`: every consumer has read its pending list.
    """
    return suspects == 1 and not charged and all_read


def after_crash(crashes: int, options: Options) -> Dead | None:
    """Return the outcome of a message that was charged with `crashes` crashes; None: it is run again, isolated."""
    return Dead(CRASHED, crashes) if crashes >= options.max_crashes else None
