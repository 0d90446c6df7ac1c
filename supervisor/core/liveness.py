"""Decides whether a child is alive from the times that it wrote to shared memory.

A machine that was suspended, or an arbiter that was slow itself, makes every beat look old. The monitor
therefore measures its own delay first and adds it to all deadlines. The times can't be trusted either:
a child may have overwritten them with garbage, and garbage must not keep a hung child alive.

Pure: times are passed in, as nanoseconds of one monotonic clock.
"""

from dataclasses import dataclass, field

from supervisor.core.slot import Heartbeat

NS = 1_000_000_000
#: A monitor that is later than this ignores beats and deadlines from before the delay.
LATE_NS = NS
#: A child rounds its deadline up to its next beats, by at most this much.
ROUNDED_NS = NS


@dataclass(slots=True)
class LivenessMonitor:
    """Reads the heartbeats of many slots."""

    _check_ns: int = 0
    #: The end of the last delay; no beat counts as older than this.
    _resumed_ns: int = 0
    #: Slot -> (the latest deadline that may date from before the last delay, the time added to it).
    _extended: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: Slot -> (an impossible beat, when it was first seen).
    _garbage: dict[int, tuple[int, int]] = field(default_factory=dict)

    def begin_check(self, now_ns: int, due_ns: int, deadlines_ns: dict[int, int]) -> int:
        """Start a check and return the monitor's own delay in nanoseconds, or 0 if it is negligible.

        `due_ns` is when the check was planned (0: not planned). `deadlines_ns` are the current deadlines
        of the living slots.
        """
        late_ns = now_ns - due_ns if due_ns else 0
        self._check_ns = now_ns
        if late_ns <= LATE_NS:
            return 0
        self._resumed_ns = now_ns
        self._extended = {
            slot: (max(deadline_ns, now_ns) + ROUNDED_NS, late_ns + self._extra_ns(slot, deadline_ns))
            for slot, deadline_ns in deadlines_ns.items()
        }
        return late_ns

    def heartbeat(self, slot: int, *, ready: bool, beat_ns: int, deadline_ns: int) -> Heartbeat:
        """Return the heartbeat of a slot as of the current check; a time of 0 means "not set"."""
        silent_ns = self._check_ns - max(self._last_beat_ns(slot, beat_ns, ready), self._resumed_ns)
        overdue = bool(deadline_ns) and self._check_ns > deadline_ns + self._extra_ns(slot, deadline_ns)
        return Heartbeat(ready=ready, silent_s=max(0, silent_ns) / NS, overdue=overdue)

    def _last_beat_ns(self, slot: int, beat_ns: int, ready: bool) -> int:
        """Return the time of the last beat.

        An impossible one (in the future, or missing although the child is READY) counts from when it was first seen.
        """
        latest_ns = self._check_ns + LATE_NS
        if (beat_ns or ready) and not 0 < beat_ns <= latest_ns:
            known_ns, seen_ns = self._garbage.get(slot, (beat_ns, self._check_ns))
            self._garbage[slot] = beat_ns, seen_ns if known_ns == beat_ns else self._check_ns
            return self._garbage[slot][1]
        self._garbage.pop(slot, None)
        return beat_ns or self._check_ns

    def _extra_ns(self, slot: int, deadline_ns: int) -> int:
        """Return the time to add to a deadline; later deadlines were set after the delay and get none."""
        last_ns, extra_ns = self._extended.get(slot, (0, 0))
        return extra_ns if 0 < deadline_ns <= last_ns else 0
