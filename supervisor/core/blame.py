"""Which message is charged for a crash, and when that was one crash too many. Pure.

Only a message that was alone in hand is charged: with others beside it nobody knows which one it was,
so they all run again, one at a time.
"""

from collections.abc import Iterable

from supervisor.core.ids import parse_id
from supervisor.core.options import Options
from supervisor.core.outcome import CRASHED, Dead


def marked(pending: Iterable[bytes], alone: tuple[int, int] | None) -> bytes | None:
    """The one of `pending` that ran alone at the crash, as shared memory says; None: it is settled, or none did."""
    return next((entry for entry in pending if parse_id(entry) == alone), None)


def lone_suspect(suspects: int, *, charged: bool, all_read: bool) -> bool:
    """Whether the suspect at hand was the only message in the process: then it need not run marked to be known.

    `suspects`: of all consumers of the worker. `charged`: the mark has named a message already, or would have, since
    they ran one at a time. `all_read`: every consumer knows what its predecessor left.
    """
    return suspects == 1 and not charged and all_read


def after_crash(crashes: int, options: Options) -> Dead | None:
    """What becomes of a message that was charged its `crashes`th crash; None: it is run again, alone."""
    return Dead(CRASHED, crashes) if crashes >= options.max_crashes else None
