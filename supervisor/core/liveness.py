"""Is a child alive, by what it wrote? And is the one who asks to be trusted with the answer?

A machine that was frozen and thawed, or an arbiter that was late itself, makes every beat look old.
So the judge first looks at its own lateness, and all that ran out meanwhile gets that time back.

Pure: times in nanoseconds of one monotonic clock are handed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.core.slot import Sign

NS = 1_000_000_000
#: An arbiter that was later than this does not judge by the old times.
LATE_NS = NS


@dataclass(slots=True)
class Judge:
    """Judges the signs of life of many slots."""

    _turn_ns: int = 0
    #: No beat is taken as older than this.
    _thaw_ns: int = 0
    #: Slot -> (its deadline at the last thaw, what is added to it).
    _extended: dict[int, tuple[int, int]] = field(default_factory=dict)

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
            slot: (deadline_ns, late_ns + self._extra_ns(slot, deadline_ns))
            for slot, deadline_ns in deadlines_ns.items()
            if deadline_ns
        }
        return late_ns

    def sign(self, slot: int, *, ready: bool, beat_ns: int, deadline_ns: int) -> Sign:
        """What a slot's words say, as of the last turn; a word of 0 says nothing."""
        now_ns = self._turn_ns
        quiet_ns = now_ns - max(beat_ns, self._thaw_ns) if beat_ns else 0
        overdue = bool(deadline_ns) and now_ns > deadline_ns + self._extra_ns(slot, deadline_ns)
        return Sign(ready=ready, quiet_s=max(0, quiet_ns) / NS, overdue=overdue)

    def _extra_ns(self, slot: int, deadline_ns: int) -> int:
        known_ns, extra_ns = self._extended.get(slot, (0, 0))
        return extra_ns if known_ns == deadline_ns else 0
