"""The Lua scripts: one file each in `lua/`, whose head says what it takes, does and returns.

Every script creates first and removes last: one that stops half way leaves a message pending, never lost (an error
in MULTI would not stop the XACK behind it).

They are read when this module is imported, which the arbiter does before it forks: a worker that is forked after an
upgrade of the package must not get a script of the new version.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.core.dead_letter import FIELD_PREFIX
from supervisor.core.rate import BURST_S
from supervisor.core.replayed_copy import ORIGIN
from supervisor.keys import RATES_CONSUMER, TURNS_CONSUMER

_FOLDER = Path(__file__).with_name("lua")
_INCLUDE = re.compile(r"^-- include: (.*)\n", re.MULTILINE)
_COMMENT = re.compile(r"^ *--.*\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A script and the digest to call it by."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        """Compute the digest that EVALSHA takes."""
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


def _script(name: str, **constants: str) -> Script:
    """Read a script with what it includes; the constants become its local variables."""
    text = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    text = _INCLUDE.sub(lambda found: "".join(map(_included, found[1].split())), text)
    return Script("".join(f"local {name} = '{value}'\n" for name, value in constants.items()) + _COMMENT.sub("", text))


def _included(name: str) -> str:
    return (_FOLDER / "include" / f"{name}.lua").read_text(encoding="utf-8")


# Settling.
ACK_RETRIED = _script("ack_retried")
RECORD_RETRY = _script("record_retry")
EMIT = _script("emit")
NOTE_EMITS = _script("note_emits")
DEAD_LETTER = _script("dead_letter")
DEAD_LETTER_UNREADABLE = _script("dead_letter_unreadable", ORIGIN=ORIGIN, FIELD_PREFIX=FIELD_PREFIX.decode())

# Turns.
ADMIT = _script("admit", WAITS=TURNS_CONSUMER)
SETTLE_TURNS = _script("settle_turns", WAITS=TURNS_CONSUMER)
DEAD_LETTER_TURN = _script("dead_letter_turn", WAITS=TURNS_CONSUMER)
TURNS_BEGIN = _script("turns_begin")
TURNS_WAITING = _script("turns_waiting", WAITS=TURNS_CONSUMER)
TURN_FACTS = _script("turn_facts", WAITS=TURNS_CONSUMER)
DROP_HALTING = _script("drop_halting")
TURNS_CHECK = _script("turns_check", WAITS=TURNS_CONSUMER)

# Rates.
_LATE_MS = str(round(BURST_S * 1000))
RESERVE_RATE = _script("reserve_rate", WAITS=RATES_CONSUMER, LATE_MS=_LATE_MS)
TAKE_DUE = _script("take_due", WAITS=RATES_CONSUMER, LATE_MS=_LATE_MS)
CHANGE_RATE = _script("change_rate", LATE_MS=_LATE_MS)

# Housekeeping.
NOW = _script("now")
CLAIM_PENDING = _script("claim_pending")
DELETE_CONSUMER = _script("delete_consumer")
TAKE_LEASE = _script("take_lease")
DROP_LEASE = _script("drop_lease")
NOTE_POOL = _script("note_pool")
TRIM = _script("trim")

# Publishing and replaying.
PUBLISH_ONCE = _script("publish_once")
PUBLISH_LATER = _script("publish_later")
LATER_DUE = _script("later_due")
MOVE_LATER = _script("move_later")
FORGET_STREAM = _script("forget_stream")
PUBLISH_TICKS = _script("publish_ticks")
RESUME_SCHEDULE = _script("resume_schedule")
RUN_SCHEDULE = _script("run_schedule")
RELAY = _script("relay")
REPLAY = _script("replay", ORIGIN=ORIGIN, FIELD_PREFIX=FIELD_PREFIX.decode())

# Looking.
READ_PAGE = _script("read_page")
ENTRY_FACTS = _script("entry_facts")
UNREAD = _script("unread")
LATER_COUNT = _script("later_count")
TRIMMED_UNREAD = _script("trimmed_unread")
FIRST_COPIES = _script("first_copies")
