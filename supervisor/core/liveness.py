"""Is a child alive, by what it wrote? And is the one who asks to be trusted with the answer?

A machine that was frozen and thawed, or an arbiter that was late itself, makes every beat look old.
So the judge first looks at its own lateness, and all that ran out meanwhile gets that time back. Nor
are the words to be trusted: a child may have written nonsense into them, but that makes it no immortal.

Pure: times in nanoseconds of one monotonic clock are handed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.core.slot import Heartbeat

NS = 1_000_000_000
#: An arbiter that was later than this does not judge by the old times.
LATE_NS = NS
#: So much later than a deadline may a child's word of it be, which is rounded up to its beats.
ROUNDED_NS = NS


@dataclass(slots=True)
class LivenessMonitor:
    """Judges the signs of life of many slots."""

    _turn_ns: int = 0
    #: No beat is taken as older than this.
    _thaw_ns: int = 0
    #: Slot -> (the last deadline that may have been set before the last thaw, what is added to it).
    _extended: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: Slot -> (a beat that can't be, when it was first seen).
    _nonsense: dict[int, tuple[int, int]] = field(default_factory=dict)

    def turn(self, now_ns: int, due_ns: int, deadlines_ns: dict[int, int]) -> int:
        """The judge looks again; how late it is, in nanoseconds, 0 when that is not worth a word.

        `due_ns` is when it should have looked, 0 for no certain time. `deadlines_ns` are the living
        slots' deadlines as they stand.
        """
        late_ns = now_ns - due_ns if due_ns else 0
        self._turn_ns = now_ns
        if late_ns <= LATE_NS:
            return 0
        self._thaw_ns = now_ns
        self._extended = {
            slot: (max(deadline_ns, now_ns) + ROUNDED_NS, late_ns + self._extra_ns(slot, deadline_ns))
            for slot, deadline_ns in deadlines_ns.items()
        }
        return late_ns

    def sign(self, slot: int, *, ready: bool, beat_ns: int, deadline_ns: int) -> Heartbeat:
        """What a slot's words say, as of the last turn; a word of 0 says nothing."""
        quiet_ns = self._turn_ns - max(self._beat_ns(slot, beat_ns, ready), self._thaw_ns)
        overdue = bool(deadline_ns) and self._turn_ns > deadline_ns + self._extra_ns(slot, deadline_ns)
        return Heartbeat(ready=ready, quiet_s=max(0, quiet_ns) / NS, overdue=overdue)

    def _beat_ns(self, slot: int, beat_ns: int, ready: bool) -> int:
        """When it beat. What can't be, a beat to come or none of a child that is READY, is as old as it is known."""
        latest_ns = self._turn_ns + LATE_NS
        if (beat_ns or ready) and not 0 < beat_ns <= latest_ns:
            known_ns, seen_ns = self._nonsense.get(slot, (beat_ns, self._turn_ns))
            self._nonsense[slot] = beat_ns, seen_ns if known_ns == beat_ns else self._turn_ns
            return self._nonsense[slot][1]
        self._nonsense.pop(slot, None)
        return beat_ns or self._turn_ns

    def _extra_ns(self, slot: int, deadline_ns: int) -> int:
        """The time that it gets back. A later deadline is that of something that was begun after the thaw."""
        last_ns, extra_ns = self._extended.get(slot, (0, 0))
        return extra_ns if 0 < deadline_ns <= last_ns else 0
